"""A load step with a target: arrivals triple, then fall, and the time per token shall stay.

One engine after the other serves the same arrivals: one with target_tpot_ms, and one for each static setting (rows in
flight x tokens of a step). Acceptance: with the target, p95 of the requests' time per token is at most 1.2 times the
target, at 0.9 or more of the throughput of the best static setting that keeps to the same.

Caveats: the bare engine; arrivals that exceed what the target allows wait, and their time to the first token shows it.
`gap` is between two events of a request, which a request's mean hides. On a noisy machine each setting meets another
noise: run it alone, and see `--rounds`.
"""

import argparse
import time
from collections.abc import Sequence
from statistics import median

from benchmarks.engines import add_engine_arguments, engine_settings, generate, load_engine, token_prompts
from benchmarks.open_loop import Arrival, Phase, arrivals, drive
from benchmarks.report import keep_line, print_json
from benchmarks.workload import workload

Figures = dict[str, float]


def served(settings: dict[str, object], work: Sequence[Arrival]) -> Figures:
    engine = load_engine(settings)
    generate(engine, [one.prompt_token_ids for one in work[:4]], [4] * len(work[:4]))  # type: ignore[misc]  # lists, as token_prompts gives
    found = drive(engine, work, clock=time.perf_counter, wait=time.sleep).figures()
    statistics = engine.statistics()
    engine.close()
    limits = {"rows_limit": statistics.num_rows_limit, "tokens_limit": statistics.num_batched_tokens_limit}
    return {**found, **limits}


def verdict(paced: Figures, static: Sequence[Figures], target_ms: float) -> dict[str, float | bool | None]:
    """None: no static setting holds the target."""
    holding = [one["tokens_per_s"] for one in static if one["per_token_p95_ms"] <= 1.2 * target_ms]
    share = round(paced["tokens_per_s"] / max(holding), 3) if holding else None
    return {
        "p95_of_target": round(paced["per_token_p95_ms"] / target_ms, 3),
        "of_best_static": share,
        "is_met": paced["per_token_p95_ms"] <= 1.2 * target_ms and (share is None or share >= 0.9),
    }


def medians(rounds: Sequence[Figures]) -> Figures:
    return {name: median(one[name] for one in rounds) for name in rounds[0]}


def print_sides(names: Sequence[str], found: Sequence[Figures]) -> None:
    print(f"{'':<20}" + "".join(f"{name:>20}" for name in found[0]))
    for name, one in zip(names, found, strict=True):
        print(f"{name:<20}" + "".join(f"{value:>20,.1f}" for value in one.values()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_arguments(parser)
    parser.add_argument("--target-tpot", type=float, default=40.0, help="milliseconds")
    parser.add_argument("--target-ttft", type=float, help="milliseconds")
    parser.add_argument("--rate", type=float, default=1.5, help="requests a second, before and after")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of the three phases")
    parser.add_argument("--static", default="8x64,16x64,16x512,24x64,24x512,64x512", help="ROWSxTOKENS, each a setting")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="write the JSON line to benchmarks/results/")
    args = parser.parse_args()
    base = engine_settings(args)
    sides: dict[str, dict[str, object]] = {
        "target": {**base, "target_tpot_ms": args.target_tpot, "target_ttft_ms": args.target_ttft}
    }
    for word in args.static.split(","):
        rows, _, tokens = word.partition("x")
        sides[word] = {**base, "max_num_seqs": int(rows), "max_num_batched_tokens": int(tokens)}
    phases = [Phase(args.rate, args.seconds), Phase(3 * args.rate, args.seconds), Phase(args.rate, args.seconds)]
    questions = workload(64, seed=args.seed)
    engine = load_engine(base)
    work = arrivals(phases, token_prompts(engine, questions), questions.max_tokens, seed=args.seed)
    engine.close()
    rounds = [[served(settings, work) for settings in sides.values()] for _ in range(args.rounds)]
    found = [medians([one[index] for one in rounds]) for index in range(len(sides))]
    print_sides(list(sides), found)
    judged = verdict(found[0], found[1:], args.target_tpot)
    figures = {**judged, "sides": dict(zip(sides, found, strict=True)), "num_requests": len(work)}
    line = print_json("load_step", figures, {**base, **vars(args)})
    if args.keep:
        keep_line("load_step", line)


if __name__ == "__main__":
    main()
