"""A tuning as files: the configuration, the report and the picture. Knows no engine."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenmill_worker.tune.chart import Chart, Dot, Mark, Series
from tokenmill_worker.tune.figures import Figures, Targets
from tokenmill_worker.tune.session import Measured, Tuning

COLUMNS = ("tok/s", "ms a token p50", "p99", "ms to the first p50", "p95", "rows decoding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Everything that is written down. `stated` are the settings that the user chose, under their own names."""

    tuning: Tuning
    model: str
    device: str
    workload: str
    targets: Targets
    stated: Mapping[str, object]
    machine: Mapping[str, str]
    date: str
    load_s: float

    @property
    def settings(self) -> dict[str, object]:
        """Keys of WorkerSettings, in the order of the file."""
        point = self.tuning.chosen.point
        tuned = {
            "max_num_seqs": point.max_num_seqs,
            "max_num_batched_tokens": point.max_num_batched_tokens,
            "scheduling_interval": point.scheduling_interval,
            "num_threads": point.num_threads,
            "target_ttft_ms": self.targets.ttft_ms,
            "target_tpot_ms": self.targets.tpot_ms,
        }
        everything = {"model": self.model, **self.stated, **tuned}
        return {name: value for name, value in everything.items() if value is not None}


def file_stem(model: str, device: str, quantization: str | None) -> str:
    """`<model>-<device>`, of characters that every file system takes."""
    name = Path(model).name if Path(model).is_absolute() else model.partition("?")[0]
    parts = [name, device.partition(":")[0], *([quantization] if quantization else [])]
    return "-".join("".join(sign if sign.isalnum() or sign in "._" else "-" for sign in part) for part in parts)


def write(record: Record, folder: Path) -> list[Path]:
    """Three files of one stem; the configuration first."""
    quantization = record.stated.get("quantization")
    stem = file_stem(record.model, record.device, str(quantization) if quantization else None)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        ".toml": toml(record),
        ".md": markdown(record, picture=f"{stem}.svg"),
        ".svg": picture(record),
    }
    paths = [folder / f"{stem}{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


# The configuration


def toml(record: Record) -> str:
    tuning, seen = record.tuning, record.tuning.chosen.figures
    measured = (
        f"measured: {seen.tokens_per_s:.0f} output tokens/s with every row busy; a token takes "
        f"{seen.token_p50_ms:.1f} ms (p50), {seen.token_p99_ms:.1f} ms (p99); first token after "
        f"{seen.ttft_p50_ms:.0f} ms (p50), {seen.ttft_p95_ms:.0f} ms (p95)"
    )
    lines = [
        f"tokenmill tune, {record.date}, in {tuning.seconds:.0f} s: {tuning.num_points} settings measured",
        f"workload: {record.workload}",
        measured,
        *_verdict(record),
        "machine: " + "; ".join(f"{name} {value}" for name, value in record.machine.items()),
        "use: tokenmill worker --config THIS-FILE; every key is explained in configs/worker.toml",
    ]
    comments = "".join(f"# {line}\n" for line in lines)
    return comments + "\n" + "".join(f"{name} = {_value(value)}\n" for name, value in record.settings.items())


def _value(value: object) -> str:
    """Strings, booleans and numbers look in TOML as they do in JSON."""
    return json.dumps(value, ensure_ascii=False)


def _verdict(record: Record) -> list[str]:
    targets = record.targets
    if not targets:
        return []
    asked = " and ".join(
        f"{name} within {limit:g} ms"
        for name, limit in (("first token", targets.ttft_ms), ("time per token", targets.tpot_ms))
        if limit is not None
    )
    found = record.tuning.chosen.figures
    seen = f"p95 was {found.ttft_p95_ms:.0f} ms and {found.tpot_p95_ms:.1f} ms"
    if record.tuning.is_held:
        return [f"asked for: {asked}; {seen}"]
    return [f"asked for: {asked}; NOT HELD by any setting that was measured: here {seen}, the nearest"]


# The report


def markdown(record: Record, *, picture: str) -> str:
    tuning = record.tuning
    knee = tuning.knee
    parts = [
        f"# {record.model} on {record.device}, tuned {record.date}",
        f"{_sentence(record)}",
        f"![throughput against time per token]({picture})",
        "## The settings",
        "```toml\n" + "".join(f"{name} = {_value(value)}\n" for name, value in record.settings.items()) + "```",
        "## Rows in flight, all else as by default",
        _table("rows", [(str(one.point.max_num_seqs), one.figures) for one in tuning.curve]),
        f"The knee lies at {knee.point.max_num_seqs} rows: up to there more rows give more than they cost."
        if knee
        else "Too few points for a knee.",
        "## The last settings compared, in turn",
        _table("setting", [(str(one.point), one.figures) for one in tuning.finalists])
        if tuning.finalists
        else "There was no time for comparing settings.",
        "## Static batches of our own engine",
        _table("rows", [(str(one.point.max_num_seqs), one.figures) for one in tuning.static])
        if tuning.static
        else "There was no time for static batches.",
        "## Arrivals that wait for nobody (Poisson), with the chosen settings",
        _table("requests/s", [(f"{one.rate:.2f}", one.figures) for one in tuning.open])
        if tuning.open
        else "There was no time for arrivals.",
        "## How it was measured",
        _method(record),
    ]
    return "\n\n".join(parts) + "\n"


def _sentence(record: Record) -> str:
    seen = record.tuning.chosen.figures
    first = (
        f"{record.tuning.chosen.point}: {seen.tokens_per_s:.0f} output tokens a second, a token every "
        f"{seen.token_p50_ms:.1f} ms (p99 {seen.token_p99_ms:.1f} ms)."
    )
    return " ".join([first, *(f"{line[0].upper()}{line[1:]}." for line in _verdict(record))])


def _table(name: str, rows: Sequence[tuple[str, Figures]]) -> str:
    head = f"| {name} | " + " | ".join(COLUMNS) + " |"
    lines = [
        f"| {label} | {one.tokens_per_s:.0f} | {one.token_p50_ms:.1f} | {one.token_p99_ms:.1f} "
        f"| {_seen(one.ttft_p50_ms)} | {_seen(one.ttft_p95_ms)} | {one.num_rows:.1f} |"
        for label, one in rows
    ]
    return "\n".join([head, "|---" * (len(COLUMNS) + 1) + "|", *lines])


def _seen(ms: float) -> str:
    """In a short window with few rows, no newcomer may have come."""
    return f"{ms:.0f}" if ms else "none came"


def _method(record: Record) -> str:
    tuning = record.tuning
    lines = [
        f"Workload: {record.workload}. One engine, loaded in {record.load_s:.0f} s, its limits changed as it ran;",
        f"{tuning.num_points} settings in {tuning.seconds:.0f} s. Closed loop: as many clients as rows, each asks",
        "again when it has its answer; a batch starts full, its answers under way. Rates are those of a window with as",
        "many newcomers as the workload has on average. Settings are compared by successive halving, in rounds, each",
        "in the opposite order of the one before. Prefix caching is off, since the same rows come again. Static",
        "batches have prompts and answers of a quarter of the length. No queue, no network.",
    ]
    return "\n".join([*lines, "", *(f"- {name}: {value}" for name, value in record.machine.items())])


# The picture


def picture(record: Record) -> str:
    tuning = record.tuning
    chosen = tuning.chosen
    marks = [Mark(_dot(chosen), f"chosen: {chosen.point.max_num_seqs} rows", is_centred=True)]
    if tuning.knee and tuning.knee.point.max_num_seqs != chosen.point.max_num_seqs:
        marks.append(Mark(_dot(tuning.knee), f"knee: {tuning.knee.point.max_num_seqs} rows"))
    elif tuning.knee:
        marks = [Mark(_dot(chosen), f"chosen, and the knee: {chosen.point.max_num_seqs} rows", is_centred=True)]
    limit = record.targets.tpot_ms
    series = [
        Series("continuous, p50", [_dot(one, label=str(one.point.max_num_seqs)) for one in tuning.curve]),
        Series("continuous, p99", [Dot(one.figures.token_p99_ms, one.figures.tokens_per_s) for one in tuning.curve]),
        Series("static, p50", [_dot(one, label=str(one.point.max_num_seqs)) for one in tuning.static], is_dashed=True),
    ]
    return Chart(
        title=f"{record.model} on {record.device}: what a token's time buys",
        subtitle="numbers at the dots: rows in flight",
        x_label="time per token, ms",
        y_label="output tokens a second",
        series=[one for one in series if one.dots],
        marks=marks,
        limits=[(limit, f"{limit:g} ms asked for")] if limit else [],
        x_scale="log2",
    ).svg()


def _dot(one: Measured, label: str = "") -> Dot:
    return Dot(one.figures.token_p50_ms, one.figures.tokens_per_s, label)
