"""Is what `tokenmill tune` writes as fast as the best point of a full grid?

python -m benchmarks.tune_grid --config configs/tuned/smollm2-cpu.toml --keep

Measures every point of the grid once, in pieces: each point is kept in benchmarks/results at once, and another call
goes on where this one stopped (`--budget-s` bounds a call). Then the points within 10 % of the best are measured again,
there and back; then the best of them and the tuned configuration in turn, A B A B: that is the answer,
`tuned_over_best`.

Caveats: a closed loop on the bare engine, as in tuning; rates are what an undisturbed machine gives (medians over
steps). The best of many noisy points is measured anew before it is compared, or it would have luck on its side.
"""

import argparse
import json
import time
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tokenmill_worker.engine.threads import usable_cores
from tokenmill_worker.tune.figures import Figures
from tokenmill_worker.tune.loop import Loop
from tokenmill_worker.tune.space import Point, Space

from benchmarks.batching.measure import question_workload, there_and_back, told
from benchmarks.engines import add_engine_arguments, engine_settings, load_engine
from benchmarks.report import RESULTS, print_json

ROWS, TOKENS, INTERVALS = (8, 16, 24, 32, 48, 64, 96, 128), (128, 256, 512, 1024, 2048), (1, 2, 4, 8)
NAME = "tune_grid_smollm2_cpu"
NEAR = 0.9  # of the best rate: points that may be the best in truth
MOST_AGAIN = 6


def grid(num_threads: int, *, rows: Iterable[int] = ROWS) -> list[Point]:
    """Every combination; fewer threads with the usual settings only, since it is slower by what a core is worth."""
    full = Space(tuple(rows), TOKENS, INTERVALS, (num_threads,))
    fewer = Space(tuple(rows), (512,), (1,), tuple(range(1, num_threads)))
    return [*full.grid(), *(fewer.grid() if num_threads > 1 else ())]


class Kept:
    """The result file, written after every point."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"points": []}

    @property
    def points(self) -> list[Point]:
        return [as_point(row) for row in self.content["points"]]

    def add(self, point: Point, figures: Figures) -> None:
        self.content["points"].append({**as_row(point), **figures.plain()})
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content) + "\n")

    def near_best(self) -> list[Point]:
        """The best first."""
        rows = sorted(self.content["points"], key=lambda row: float(row["tokens_per_s"]), reverse=True)
        best = rows[0]["tokens_per_s"]
        return [as_point(row) for row in rows if row["tokens_per_s"] >= NEAR * best][:MOST_AGAIN]


def as_row(point: Point) -> dict[str, int | None]:
    return {
        "max_num_seqs": point.max_num_seqs,
        "max_num_batched_tokens": point.max_num_batched_tokens,
        "scheduling_interval": point.scheduling_interval,
        "num_threads": point.num_threads,
    }


def as_point(row: dict[str, Any]) -> Point:
    """Of a row of the result, or of a tuned configuration."""
    return Point(row["max_num_seqs"], row["max_num_batched_tokens"], row["scheduling_interval"], row.get("num_threads"))


def fill(loop: Loop, points: Sequence[Point], kept: Kept, *, seconds: float, deadline_s: float) -> bool:
    """Those that are not kept yet; False: the time was up before the last one."""
    done = set(kept.points)
    for number, point in enumerate(point for point in points if point not in done):
        if time.perf_counter() > deadline_s:
            return False
        kept.add(point, told(f"{len(done) + number + 1} of {len(points)}", point, loop.closed(point, seconds)))
    return True


def compare(loop: Loop, best: Point, tuned: Point, *, num_rounds: int, seconds: float) -> dict[str, Any]:
    """In turn, each round in the opposite order of the one before."""
    rates: dict[str, list[float]] = {"best": [], "tuned": []}
    sides = [("best", best), ("tuned", tuned)]
    for number in range(num_rounds):
        for name, point in sides[:: 1 if number % 2 == 0 else -1]:
            rates[name].append(round(told(name, point, loop.closed(point, seconds)).tokens_per_s, 1))
    ratio = median(ours / theirs for ours, theirs in zip(rates["tuned"], rates["best"], strict=True))
    return {
        "best": as_row(best),
        "tuned": as_row(tuned),
        "tokens_per_s": rates,
        "tuned_over_best": round(ratio, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_arguments(parser)
    parser.add_argument("--config", type=Path, help="what tune wrote; without it, the grid alone is measured")
    parser.add_argument("--seconds", type=float, default=4.5, help="for each point of the grid")
    parser.add_argument("--rounds", type=int, default=4, help="of the comparison")
    parser.add_argument("--budget-s", type=float, default=1200.0, help="of this call; the next one goes on")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--fresh", action="store_true", help="forget what is kept")
    parser.add_argument(
        "--keep", action="store_true", help="in benchmarks/results, not in a file of the working folder"
    )
    args = parser.parse_args()
    deadline_s = time.perf_counter() + args.budget_s
    path = (RESULTS if args.keep else Path()) / f"{NAME}.json"
    if args.fresh:
        path.unlink(missing_ok=True)
    kept = Kept(path)
    points = grid(usable_cores(), rows=map(int, args.rows.split(",")))
    settings = engine_settings(args, max_num_seqs=max(point.max_num_seqs for point in points))
    settings["max_num_batched_tokens"] = max(TOKENS)
    engine = load_engine(settings)
    loop = Loop(engine, question_workload(engine))
    loop.closed(points[0], 2.0)  # warm-up
    if not fill(loop, points, kept, seconds=args.seconds, deadline_s=deadline_s):
        raise SystemExit(f"{len(kept.points)} of {len(points)} points so far; the same command goes on")
    if args.config is None:
        return
    finish(loop, kept, args, settings)


def finish(loop: Loop, kept: Kept, args: argparse.Namespace, settings: dict[str, object]) -> None:
    """The best points anew, then the best one beside the tuned one."""
    near = kept.near_best()
    again = there_and_back(near, loop.closed, seconds=2 * args.seconds, name="again")
    rates = [figures.tokens_per_s for figures in again]
    best = near[rates.index(max(rates))]
    tuned = as_point(tomllib.loads(args.config.read_text()))
    kept.content["again"] = [
        {**as_row(point), "tokens_per_s": round(rate, 1)} for point, rate in zip(near, rates, strict=True)
    ]
    kept.content["comparison"] = compare(loop, best, tuned, num_rounds=args.rounds, seconds=3 * args.seconds)
    kept.content["settings"] = settings
    kept.write()
    print(f"\ntuned over best: {kept.content['comparison']['tuned_over_best']:.3f} ({tuned} beside {best})")
    print_json(NAME, {"comparison": kept.content["comparison"]}, settings)


if __name__ == "__main__":
    main()
