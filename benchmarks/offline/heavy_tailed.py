"""A few requests of very different lengths, slot for slot: what scheduling, packing and kernels give each.

24 requests of 6, 50 or 300 output tokens in a shuffled order, 4 slots. Five ways of doing them, each one thing better
than the one before it that it is compared with:

    static padded       transformers, pad_sequence, the batch waits for its longest answer
    static packed       transformers, pack_sequence: no padded prompts, finished rows leave, nobody joins
    ours, static        our engine at tier 0 (transformers' modules, torch's attention), batches of 4, nobody joins
    ours, continuous    the same, but a freed slot takes the next request at the next step
    ours                the same, with everything that the engine has

packing = static padded / ours, static; scheduling = ours, static / ours, continuous; kernels = ours, continuous / ours.
The three multiply to the whole. Our packing also does without a rectangular cache and without generate's bookkeeping,
which is why it is more than what pack_sequence gives over the same model.

Caveats: seconds are medians of rounds in turn, in one process, templating and tokenizing left out. Small batches on a
small model: overheads count for more than on a large one.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

from benchmarks.baselines import Baseline, Cost, load_model, packed, padded, run_static
from benchmarks.engines import TokenIds, add_engine_arguments, engine_settings, generate, load_engine, token_prompts
from benchmarks.offline.latency import model_folder
from benchmarks.report import keep_line, print_json
from benchmarks.workload import few_lengths

TUTORIAL = 6.5  # what the tutorial that this project grew from reports for continuous over static
PLAIN = {"tier": 0, "attention_backend": "sdpa"}


def static(
    run: Callable[[Sequence[TokenIds], Sequence[int]], int],
    prompts: Sequence[TokenIds],
    lengths: Sequence[int],
    *,
    slots: int,
) -> int:
    """Our engine, held back: the next batch starts when the last row of the one before is done."""
    starts = range(0, len(prompts), slots)
    return sum(run(prompts[start : start + slots], lengths[start : start + slots]) for start in starts)


def timed_rounds(sides: dict[str, Callable[[], int]], *, num_rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(num_rounds):
        for name, run in sides.items():
            started_s = time.perf_counter()
            run()
            seconds[name].append(round(time.perf_counter() - started_s, 3))
            print(f"  {name:<20}{seconds[name][-1]:>10.2f} s", flush=True)
    return seconds


def parts(seconds: dict[str, float]) -> dict[str, float]:
    """Factors; packing * scheduling * kernels = whole."""
    found = {
        "whole": seconds["static padded"] / seconds["ours"],
        "packing": seconds["static padded"] / seconds["ours, static"],
        "scheduling": seconds["ours, static"] / seconds["ours, continuous"],
        "kernels": seconds["ours, continuous"] / seconds["ours"],
        "pack_sequence": seconds["static padded"] / seconds["static packed"],
    }
    return {name: round(factor, 3) for name, factor in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_arguments(parser)
    parser.add_argument("--num-requests", type=int, default=24)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="write the JSON line to benchmarks/results/")
    args = parser.parse_args()
    settings = engine_settings(args, max_num_seqs=args.slots)
    work, slots = few_lengths(args.num_requests), args.slots
    model = load_model(model_folder(settings), str(settings["dtype"]))
    ours, plain = load_engine(settings), load_engine({**settings, **PLAIN})
    prompts, lengths = token_prompts(ours, work), work.max_tokens
    costs: dict[str, Cost] = {}

    def baseline(name: str, run: Baseline) -> int:
        answers, costs[name] = run_static(model, prompts, lengths, slots=slots, baseline=run)
        return sum(map(len, answers))

    sides: dict[str, Callable[[], int]] = {
        "static padded": partial(baseline, "static padded", padded),
        "static packed": partial(baseline, "static packed", packed),
        "ours, static": lambda: static(partial(generate, plain), prompts, lengths, slots=slots),
        "ours, continuous": lambda: generate(plain, prompts, lengths),
        "ours": lambda: generate(ours, prompts, lengths),
    }
    for engine in (ours, plain):
        generate(engine, prompts[:slots], [4] * slots)
    seconds = timed_rounds(sides, num_rounds=args.rounds)
    medians = {name: median(rounds) for name, rounds in seconds.items()}
    found = parts(medians)
    print_parts(medians, found)
    waste = {name: {"positions": cost.num_positions, "waste": round(cost.waste, 3)} for name, cost in costs.items()}
    figures = {"seconds": seconds, "factors": found, "tutorial": TUTORIAL, "computed": waste}
    more = {"slots": slots, "num_requests": args.num_requests, "output_tokens": work.num_output_tokens}
    line = print_json("offline_heavy_tailed", figures, {**settings, **more, "prompts": work.source})
    if args.keep:
        keep_line("offline_heavy_tailed", line)


def print_parts(seconds: dict[str, float], found: dict[str, float]) -> None:
    print()
    for name, value in seconds.items():
        print(f"{name:<24}{value:>10.2f} s{seconds['static padded'] / value:>10.2f} x")
    print()
    for name, value in found.items():
        print(f"{name:<24}{value:>10.2f} x")


if __name__ == "__main__":
    main()
