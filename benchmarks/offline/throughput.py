"""Workload A: 64 questions, greedy, fixed log-normal output lengths, all submitted at once.

One JSON line a run, as rivals' scripts print it ({"engine", "dtype", "output_tokens", "seconds", "tokens_per_s"}), so
that benchmarks.compare takes this script and a rival's alike; the first run warms up, the last one counts.

Caveats: templating and tokenizing are not in the time, here as in the rivals' scripts.
"""

import argparse
import json
import time

from benchmarks.engines import (
    TokenIds,
    add_engine_arguments,
    engine_settings,
    generate,
    load_engine,
    token_prompts,
)
from benchmarks.report import keep_line, peak_rss_mib, print_json
from benchmarks.workload import workload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_arguments(parser)
    parser.add_argument("--num-requests", type=int, default=64)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", metavar="FILE", help="write torch's profile of one more run there, as a table")
    parser.add_argument("--keep", action="store_true", help="write the JSON line to benchmarks/results/")
    args = parser.parse_args()
    settings = engine_settings(args)
    engine, work = load_engine(settings), workload(args.num_requests, seed=args.seed)
    prompts = token_prompts(engine, work)
    rates = []
    for _ in range(args.runs):
        started_s = time.perf_counter()
        tokens = generate(engine, prompts, work.max_tokens)
        rates.append(print_run(str(settings["dtype"]), tokens, time.perf_counter() - started_s))
    if args.profile:
        profile(args.profile, lambda: generate(engine, prompts, work.max_tokens))
    figures = {**describe(prompts, work.max_tokens), "tokens_per_s": rates[-1] if rates else None, "runs": rates}
    line = print_json("offline_throughput", figures, {**settings, "prompts": work.source, "seed": args.seed})
    if args.keep:
        keep_line("offline_throughput", line)


def print_run(dtype: str, output_tokens: int, seconds: float) -> float:
    rate = round(output_tokens / seconds, 1)
    line = {"engine": "tokenmill", "dtype": dtype, "output_tokens": output_tokens}
    print(json.dumps({**line, "seconds": round(seconds, 3), "tokens_per_s": rate}), flush=True)
    return rate


def describe(prompts: list[TokenIds], lengths: list[int]) -> dict[str, object]:
    return {
        "num_requests": len(prompts),
        "prompt_tokens": sum(map(len, prompts)),
        "output_tokens": sum(lengths),
        "peak_rss_mib": peak_rss_mib(),
    }


def profile(path: str, run: object) -> None:
    from pathlib import Path

    import torch.profiler

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        assert callable(run)
        run()
    Path(path).write_text(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=60))


if __name__ == "__main__":
    main()
