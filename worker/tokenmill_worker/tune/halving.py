"""Successive halving: many points get a glance each, the better third a longer one, until few are left. Pure.

Source: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016. Every
rung gets the same time, so what is decided last is measured longest. Within a rung the points are measured in rounds,
each in the opposite order of the one before, and compared round by round: a machine that slows down for a minute slows
down neighbours in time, not one point.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from tokenmill_worker.tune.budget import Budget
from tokenmill_worker.tune.figures import Figures, Targets
from tokenmill_worker.tune.loop import OutOfTimeError
from tokenmill_worker.tune.space import Point

KEPT = 3  # of so many points, one goes on
FEWEST_FINALISTS = 3
SHORTEST_S = 0.4  # of a window; below, starting it costs more than it tells

Measure = Callable[[Point, float], Figures]


class Rung(NamedTuple):
    """Points that are measured together: in so many rounds, for their share of the time."""

    num_points: int
    num_rounds: int


class Ranked(NamedTuple):
    """A point, what was typical of it, and its merit beside the others measured at the same time (1: the middle)."""

    point: Point
    figures: Figures
    merit: float


def rungs(num_points: int) -> list[Rung]:
    """From all points to the finalists; those are measured in three rounds, the others in one."""
    sizes = [num_points]
    while sizes[-1] > FEWEST_FINALISTS:
        sizes.append(max(FEWEST_FINALISTS, -(-sizes[-1] // KEPT)))
    return [Rung(size, 3 if size <= FEWEST_FINALISTS else 1) for size in sizes]


def halve(
    points: Sequence[Point], measure: Measure, budget: Budget, targets: Targets, *, also: Point | None = None
) -> list[Ranked]:
    """The finalists, the best first, or as far as the time went; nothing where it was not enough for any point.

    `also` is measured among the finalists, whatever became of it before.
    """
    chosen, ranked = list(points), list[Ranked]()
    ladder = rungs(len(points))
    for number, rung in enumerate(ladder):
        share = budget.share(1 / (len(ladder) - number))
        chosen = chosen[: rung.num_points]
        if number == len(ladder) - 1 and also is not None and also not in chosen:
            chosen.append(also)
        found = rank(chosen, measure, share, targets, num_rounds=rung.num_rounds)
        if not found:
            break
        ranked, chosen = found, [one.point for one in found]
    return ranked


def rank(
    points: Sequence[Point], measure: Measure, budget: Budget, targets: Targets, *, num_rounds: int
) -> list[Ranked]:
    """The points by merit, the best first. One whose turn did not come before the time was up is left out."""
    found: dict[Point, list[Figures]] = {point: [] for point in points}
    merits: dict[Point, list[float]] = {point: [] for point in points}
    for number in range(num_rounds):
        own = _round(points[:: 1 if number % 2 == 0 else -1], measure, budget.share(1 / (num_rounds - number)))
        middle = median(map(targets.merit, own.values())) if own else 0.0
        for point, figures in own.items():
            found[point].append(figures)
            merits[point].append(targets.merit(figures) / middle if middle else 0.0)
    seen = [Ranked(point, Figures.typical(found[point]), median(merits[point])) for point in points if found[point]]
    return sorted(seen, key=lambda one: one.merit, reverse=True)


def _round(points: Sequence[Point], measure: Measure, budget: Budget) -> dict[Point, Figures]:
    """Each once, for an equal share of the time, which is also spent on filling the batch."""
    found: dict[Point, Figures] = {}
    for number, point in enumerate(points):
        seconds = budget.left_s / (len(points) - number)
        if seconds < SHORTEST_S / 2:
            break
        try:
            found[point] = measure(point, max(SHORTEST_S, seconds))
        except OutOfTimeError:
            break
    return found
