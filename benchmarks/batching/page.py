"""docs/batching.md and its pictures from one kept result, which has every figure of the page. Measures nothing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenmill_worker.tune.chart import Chart, Dot, Mark, Series

from benchmarks.report import RESULTS

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
PAGE, IMAGES = DOCS / "batching.md", DOCS / "images"
Rows = Sequence[Mapping[str, Any]]
Result = Mapping[str, Any]
SHOWN_ROWS = (8, 16, 32, 64)
HEADS = {
    "num_rows": "rows",
    "tokens_per_s": "tok/s",
    "token_p50_ms": "ms a token p50",
    "token_p99_ms": "p99",
    "ttft_p50_ms": "ms to the first p50",
    "ttft_p95_ms": "ms to the first p95",
    "load": "load",
    "rate": "requests/s",
    "way": "way",
    "slots": "rows",
    "form": "form",
    "ratio": "beside padded",
    "waste": "computed for nobody",
    "interval": "steps",
    "tokens": "tokens",
    "flush_interval_ms": "ms collected",
    "gap_p50_ms": "ms between deltas p50",
    "gap_p95_ms": "p95",
    "tokens_per_delta": "tokens a delta",
}
FORMATS = {"tokens_per_s": "{:.0f}", "load": "{:.0%}", "ratio": "{:.1f} x", "waste": "{:.0%}", "rate": "{:.2f}"}


def kept_result(name: str) -> Result:
    """The figures of the whole page: what this benchmark kept, and what two others did."""
    flush, latency, own = (_kept(one) for one in ("flush_interval", "offline_latency", name))
    return {**flush, **own, "roofline": latency.get("roofline"), "decode": latency.get("decode", [])}


def _kept(name: str) -> dict[str, Any]:
    """Nothing where it was not measured: the roofline is one of CPUs."""
    file = RESULTS / f"{name}.json"
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return result


def write_page(result: Result, *, page: Path = PAGE, images: Path = IMAGES) -> None:
    images.mkdir(parents=True, exist_ok=True)
    for name, chart in charts(result).items():
        (images / f"{name}.svg").write_text(chart.svg(), encoding="utf-8")
    page.write_text(text(result), encoding="utf-8")


# Pictures


def charts(result: Result) -> dict[str, Chart]:
    found = {
        "batching_rows": rows_chart(result),
        "batching_interval": interval_chart(result["by_interval"]),
        "batching_ways": ways_chart(result["by_way"]),
    }
    return found | ({"batching_roofline": roofline_chart(result)} if result["roofline"] else {})


def rows_chart(result: Result) -> Chart:
    rows, knee = result["by_rows"], at(result["by_rows"], "num_rows", result["knee"])
    return Chart(
        title="What a token's time buys",
        subtitle=f"{result['settings']['model']}, continuous batching; numbers at the dots: rows in flight",
        x_label="time per token, ms",
        y_label="output tokens a second",
        series=[
            Series("p50", [Dot(row["token_p50_ms"], row["tokens_per_s"], f"{row['num_rows']}") for row in rows]),
            Series("p99", [Dot(row["token_p99_ms"], row["tokens_per_s"]) for row in rows]),
        ],
        marks=[Mark(Dot(knee["token_p50_ms"], knee["tokens_per_s"]), f"knee: {knee['num_rows']} rows")],
        x_scale="log2",
    )


def roofline_chart(result: Result) -> Chart:
    """Rates rather than times: the roof is what gives the picture its name."""
    decode = result["decode"]
    return Chart(
        title="Why: from memory to arithmetic",
        subtitle=f"the two bounds meet at {result['roofline']['balance_rows']:.0f} rows",
        x_label="rows in a decode step",
        y_label="tokens a second, without prefill",
        series=[
            Series("bound by memory and arithmetic", [_rate(row, "bound_ms") for row in decode]),
            Series("oneDNN's linears alone", [_rate(row, "linears_ms") for row in decode], is_dashed=True),
            Series("our steps", [_rate(row, "step_ms") for row in decode]),
        ],
        x_scale="log2",
    )


def _rate(row: Mapping[str, Any], time: str) -> Dot:
    return Dot(row["num_rows"], 1e3 * row["num_rows"] / row[time])


def interval_chart(rows: Rows) -> Chart:
    return Chart(
        title="How often newcomers are let in",
        subtitle="time to the first token, as many clients as rows",
        x_label="steps from one admission to the next",
        y_label="ms to the first token",
        series=[
            Series(
                "p50", [Dot(row["interval"], row["ttft_p50_ms"], f"{row['tokens_per_s']:.0f} tok/s") for row in rows]
            ),
            Series("p95", [Dot(row["interval"], row["ttft_p95_ms"]) for row in rows]),
        ],
        x_scale="log2",
    )


def ways_chart(rows: Rows) -> Chart:
    ways = list(dict.fromkeys(row["way"] for row in rows))
    return Chart(
        title="Static, dynamic, continuous",
        subtitle="the same Poisson arrivals, the same number of rows",
        x_label="requests a second",
        y_label="ms to the first token, p95",
        series=[
            Series(way, [Dot(row["rate"], row["ttft_p95_ms"]) for row in rows if row["way"] == way]) for way in ways
        ],
    )


# Text


def text(result: Result) -> str:
    template = (HERE / "page.md").read_text(encoding="utf-8")
    return template.format(**headline(result), **setup(result), **tables(result), why=why(result))


def headline(result: Result) -> dict[str, str]:
    rows = result["by_rows"]
    best, knee = max(rows, key=lambda row: row["tokens_per_s"]), at(rows, "num_rows", result["knee"])
    often, seldom = result["by_interval"][0], result["by_interval"][-1]
    shares = [
        f"{100 * row['tokens_per_s'] / best['tokens_per_s']:.0f} % at {row['num_rows']}"
        for row in rows
        if row["num_rows"] in SHOWN_ROWS
    ]
    return {
        "knee_rows": f"{knee['num_rows']}",
        "inside": "lies within" if 16 <= knee["num_rows"] <= 32 else "lies outside of",
        "best_rate": f"{best['tokens_per_s']:.0f}",
        "best_rows": f"{best['num_rows']}",
        "shares": ", ".join(shares),
        "knee_ms": f"{knee['token_p50_ms']:.0f}",
        "best_ms": f"{best['token_p50_ms']:.0f}",
        "longest_interval": f"{seldom['interval']}",
        "interval_change": f"{100 * (seldom['tokens_per_s'] / often['tokens_per_s'] - 1):+.0f} %",
        "ttft_often": f"{often['ttft_p50_ms']:.0f}",
        "ttft_seldom": f"{seldom['ttft_p50_ms']:.0f}",
    }


def setup(result: Result) -> dict[str, str]:
    machine, settings = result["machine"], result["settings"]
    return {
        "model": settings["model"],
        "dtype": settings["dtype"],
        "cpu": machine["cpu"],
        "git": machine["git"],
        "packages": ", ".join(f"{name} {version}" for name, version in machine["packages"].items()),
        "num_requests": f"{result['num_requests']}",
        "num_flushed": f"{result['num_flushed']}",
    }


def why(result: Result) -> str:
    roof = result["roofline"]
    if not roof:
        return "The roofline is measured on CPUs only."
    return (
        (HERE / "why.md")
        .read_text(encoding="utf-8")
        .strip()
        .format(
            bandwidth=f"{roof['weight_gb_per_s']:.0f}",
            weights_ms=f"{result['decode'][0]['bound_ms']:.1f}",
            lone_ms=f"{result['decode'][0]['step_ms']:.1f}",
            gflops=f"{roof['gemm_gflop_per_s']:.0f}",
            balance=f"{roof['balance_rows']:.0f}",
            knee_rows=f"{result['knee']}",
        )
    )


def tables(result: Result) -> dict[str, str]:
    ttft = ("ttft_p50_ms", "ttft_p95_ms")
    token = ("token_p50_ms", "token_p99_ms")
    return {
        "rows_table": table(result["by_rows"], ("num_rows", "tokens_per_s", *token, "ttft_p95_ms")),
        "ways_table": table(result["by_way"], ("load", "rate", "way", "tokens_per_s", *ttft, "token_p50_ms")),
        "forms_table": table(with_ratio(result["by_form"]), ("slots", "form", "tokens_per_s", "ratio", "waste")),
        "interval_table": table(result["by_interval"], ("interval", "tokens_per_s", "num_rows", *token, *ttft)),
        "flush_table": table(
            result["by_flush_interval"],
            ("flush_interval_ms", "tokens_per_s", "gap_p50_ms", "gap_p95_ms", "tokens_per_delta"),
        ),
        "tokens_table": table(result["by_tokens"], ("tokens", "tokens_per_s", "token_p99_ms", "ttft_p95_ms")),
    }


def with_ratio(rows: Rows) -> Rows:
    padded = {row["slots"]: row["tokens_per_s"] for row in rows if row["form"].startswith("padded")}
    return [{**row, "ratio": row["tokens_per_s"] / padded[row["slots"]]} for row in rows]


def table(rows: Rows, names: Sequence[str]) -> str:
    lines = [[HEADS[name] for name in names], *([cell(name, row[name]) for name in names] for row in rows)]
    written = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([written[0], "|---" * len(names) + "|", *written[1:]])


def cell(name: str, value: Any) -> str:
    """As a reader wants it; in a short window with few rows, no newcomer may have come."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if name.startswith("ttft"):
        return f"{value:.0f}" if value else "none came"
    return FORMATS.get(name, "{:,.4g}").format(value)


def at(rows: Rows, name: str, value: object) -> Mapping[str, Any]:
    return next(row for row in rows if row[name] == value)
