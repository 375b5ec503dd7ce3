"""Decode alone at 1, 8, 32 and 64 in flight, beside what the machine's measured bandwidth and GEMM rate allow.

`of_bound` is the bound (benchmarks.roofline) over the step as measured: 1 would be linears at full speed and nothing
else. `of_linears` sets the same step against the linears alone at that very number of rows. `host_ms` is what a step
takes outside of the model's runner: scheduling, packing, text. Making the step's tensors and drawing are inside it, and
counted by benchmarks.host_work.

Caveats: bandwidth and rate are those of oneDNN's products; a kernel that beats them comes to more than 1 of the bound,
and `read_gb_per_s` is then the figure to look at. Contexts of 128 to 192 tokens, so attention is small; medians of pure
decode steps, greedy.
"""

import argparse
from pathlib import Path
from statistics import median

import torch
from tokenmill_worker.engine import Engine, EngineConfig, checkpoint, loading

from benchmarks.engines import TokenIds, add_engine_arguments, engine_settings, load_engine, run_steps
from benchmarks.offline.parts import ModelClock
from benchmarks.report import keep_line, peak_rss_mib, print_json
from benchmarks.roofline import Roofline, linear_shapes
from benchmarks.workload import long_text

PROMPT_TOKENS = 128
OUTPUT_TOKENS = 64  # after the last row has joined


def rows_of(engine: Engine, num: int, num_tokens: int) -> list[TokenIds]:
    """So many prompts of so many tokens, no two alike."""
    text = engine.tokenizer.encode(long_text(8 * (num_tokens + num)))
    assert len(text) >= num_tokens + num
    return [text[start : start + num_tokens] for start in range(num)]


def decode(engine: Engine, num_rows: int) -> dict[str, float]:
    """Medians over the steps in which all rows decode."""
    run_steps(engine, rows_of(engine, num_rows, 16), [4] * num_rows)
    num_output = OUTPUT_TOKENS + num_rows * PROMPT_TOKENS // engine.config.max_num_batched_tokens
    with ModelClock(engine) as clock:
        run = run_steps(engine, rows_of(engine, num_rows, PROMPT_TOKENS), [num_output] * num_rows)
    ran = [step for step in run.steps if step.num_prefill_tokens or step.num_decode_tokens]  # not every step has rows
    timed = [
        (step.seconds, model_s)
        for step, model_s in zip(ran, clock.steps, strict=True)
        if step.num_prefill_tokens == 0 and step.num_decode_tokens == num_rows
    ][2:]
    step_s = median(seconds for seconds, _ in timed)
    host_s = median(seconds - model_s for seconds, model_s in timed)
    return {
        "num_rows": num_rows,
        "step_ms": round(step_s * 1e3, 3),
        "tokens_per_s": round(num_rows / step_s, 1),
        "host_ms": round(host_s * 1e3, 3),
    }


def beside(found: dict[str, float], roofline: Roofline) -> dict[str, float]:
    rows = int(found["num_rows"])
    bound_ms, linears_ms = roofline.bound_s(rows) * 1e3, roofline.linears_s(rows) * 1e3
    return {
        **found,
        "bound_ms": round(bound_ms, 3),
        "of_bound": round(bound_ms / found["step_ms"], 3),
        "linears_ms": round(linears_ms, 3),
        "of_linears": round(linears_ms / found["step_ms"], 3),
    }


def model_folder(settings: dict[str, object]) -> Path:
    config = EngineConfig(**settings)  # type: ignore[arg-type]  # plain values, as load_engine
    return checkpoint.locate(config.model, cache_dir=loading.cache_dir(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_arguments(parser)
    parser.add_argument("--rows", default="1,2,4,8,16,24,32,48,64,128,256")
    parser.add_argument("--keep", action="store_true", help="write the JSON line to benchmarks/results/")
    args = parser.parse_args()
    rows = [int(word) for word in args.rows.split(",")]
    settings = engine_settings(args, max_num_seqs=max(rows), kv_cache_tokens=512 * max(rows))
    roofline = Roofline(linear_shapes(model_folder(settings)), getattr(torch, str(settings["dtype"])))
    machine_figures = roofline.figures()
    engine = load_engine(settings)
    found = [beside(decode(engine, num), roofline) for num in rows]
    print_rows(found)
    figures = {"roofline": machine_figures, "decode": found, "peak_rss_mib": peak_rss_mib()}
    line = print_json("offline_latency", figures, settings)
    if args.keep:
        keep_line("offline_latency", line)


def print_rows(found: list[dict[str, float]]) -> None:
    print("".join(f"{name:>22}" for name in found[0]))
    for row in found:
        print("".join(f"{value:>22,.3f}" for value in row.values()))


if __name__ == "__main__":
    main()
