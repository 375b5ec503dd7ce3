"""Prompts of 2k to 8k tokens: how fast they are read, and how fast they are continued.

Caveats: four rows a context, read in chunks of max_num_batched_tokens as the engine always does; medians of pure decode
steps. A context is the prompt's length; the longest one leaves room for the answer in the model's 8k.
"""

import argparse
from statistics import median

from tokenmill_worker.engine import Engine

from benchmarks.engines import add_engine_arguments, engine_settings, load_engine, run_steps
from benchmarks.offline.latency import print_rows, rows_of
from benchmarks.report import keep_line, peak_rss_mib, print_json

OUTPUT_TOKENS = 16  # of each row, once all prompts are read
MAX_OUTPUT_TOKENS = 128  # the longest context's first rows decode while the last ones' prompts are read


def measure(engine: Engine, *, context: int, num_rows: int) -> dict[str, float]:
    num_reading = -(-context * num_rows // max(1, engine.config.max_num_batched_tokens - num_rows))
    num_tokens = OUTPUT_TOKENS + num_reading
    run = run_steps(engine, rows_of(engine, num_rows, context), [num_tokens] * num_rows)
    prefill_s = sum(step.seconds for step in run.steps if step.num_prefill_tokens)
    step_s = median(step.seconds for step in run.decode_steps(num_rows))
    return {
        "context": context,
        "num_rows": num_rows,
        "prefill_tokens_per_s": round(run.num_prefill_tokens / prefill_s, 1),
        "step_ms": round(step_s * 1e3, 3),
        "tokens_per_s": round(num_rows / step_s, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_arguments(parser)
    parser.add_argument("--contexts", default="2048,4096,8064")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--keep", action="store_true", help="write the JSON line to benchmarks/results/")
    args = parser.parse_args()
    contexts = [int(word) for word in args.contexts.split(",")]
    settings = engine_settings(
        args, max_num_seqs=args.rows, kv_cache_tokens=(max(contexts) + MAX_OUTPUT_TOKENS) * args.rows
    )
    engine = load_engine(settings)
    measure(engine, context=64, num_rows=args.rows)
    found = [measure(engine, context=context, num_rows=args.rows) for context in contexts]
    print_rows(found)
    line = print_json("offline_long_context", {"contexts": found, "peak_rss_mib": peak_rss_mib()}, settings)
    if args.keep:
        keep_line("offline_long_context", line)


if __name__ == "__main__":
    main()
