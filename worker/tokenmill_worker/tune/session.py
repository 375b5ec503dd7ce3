"""One tuning, stage by stage: the curve over rows, the settings around its best part, static batches, arrivals.

Knows neither files nor terminal: what is measured is told to `tell`, what was found is returned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tokenmill_worker.tune.budget import Budget
from tokenmill_worker.tune.expectation import expectation
from tokenmill_worker.tune.figures import Figures, Targets
from tokenmill_worker.tune.halving import Measure, Ranked, halve
from tokenmill_worker.tune.knee import Seen, is_flat, knee
from tokenmill_worker.tune.loop import Loop, OutOfTimeError
from tokenmill_worker.tune.space import Point, Space

CURVE_SHARE, HALVING_SHARE, STATIC_SHARE = 0.3, 0.6, 0.4  # each of what is left when its turn comes
PROMISING = 0.85  # of the best merit on the curve: rows below are not looked at any further
GLANCE_S = 1.2  # of the first rung, a point: more points than there is time for would be noise
FEWEST, MOST = 3, 27  # points that are halved
SLACK = 0.01  # of throughput, given for shorter waits: less than two runs of one setting differ by
FEWEST_ROWS = 96  # of a sweep: below, one disturbed window may look like the end of the rise
STATIC_ROWS = (4, 16, 64)
LOADS = (0.5, 0.75, 0.9)  # of what the tuned setting can do, where no rates were asked for


@dataclass(frozen=True, slots=True)
class Goal:
    """What is best. `rates`: judged under the highest of these arrival rates (requests a second), not a closed loop.

    `slack`: so much throughput is given for latency, where there is a choice.
    """

    targets: Targets = field(default_factory=Targets)
    slack: float = SLACK
    rates: Sequence[float] = ()


class Under(NamedTuple):
    """A load of an open loop, requests a second, and what the tuned setting did under it."""

    rate: float
    figures: Figures


class Measured(NamedTuple):
    """A point and what was seen of it."""

    point: Point
    figures: Figures


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a tuning found. `knee` None: too few points; `is_held` None: no target was set."""

    chosen: Measured
    curve: list[Measured]
    finalists: list[Ranked]
    knee: Measured | None
    static: list[Measured]
    open: list[Under]
    is_held: bool | None
    num_points: int
    seconds: float


class NothingMeasuredError(Exception):
    """The budget was over before any point was measured."""


class Session:
    """`tell(stage, point, figures)` hears of every measurement."""

    def __init__(
        self,
        loop: Loop,
        space: Space,
        goal: Goal,
        budget: Budget,
        *,
        tell: Callable[[str, Point, Figures], None],
    ) -> None:
        self._loop, self._space, self._goal, self._budget = loop, space, goal, budget
        self._tell = tell
        self._seen: set[Point] = set()

    def run(self) -> Tuning:
        """Raises NothingMeasuredError. Whatever else there was no time for is missing from the result."""
        curve = self._curve(self._budget.share(CURVE_SHARE))
        if not curve:
            raise NothingMeasuredError
        finalists = self._halving(curve, self._budget.share(HALVING_SHARE))
        chosen = choose(finalists, curve, self._goal)
        static = self._static(chosen.point, self._budget.share(STATIC_SHARE))
        targets = self._goal.targets
        return Tuning(
            chosen=chosen,
            curve=curve,
            finalists=finalists,
            knee=_knee(curve),
            static=static,
            open=self._open(chosen, curve, self._budget),
            is_held=targets.are_held(chosen.figures) if targets else None,
            num_points=len(self._seen),
            seconds=self._budget.spent_s,
        )

    # Stages

    def _curve(self, budget: Budget) -> list[Measured]:
        """Rows from few to many until more of them give nothing, and back again, all else as it is by default."""
        rows = self._space.max_num_seqs
        window_s = budget.left_s / (2 * len(rows))
        measure = self._told("rows", self._loop.closed)
        up: list[Measured] = []
        for num in rows:
            if not _try(measure, self._space.usual(num), window_s, up):
                break
            if num >= FEWEST_ROWS and is_flat([one.figures.tokens_per_s for one in up]):
                break
        down: list[Measured] = []
        for one in reversed(up):
            if not _try(measure, one.point, window_s, down):
                break
        return [_typical(one, down) for one in up]

    def _halving(self, curve: Sequence[Measured], budget: Budget) -> list[Ranked]:
        targets = self._goal.targets
        by_merit = sorted(curve, key=lambda one: targets.merit(one.figures), reverse=True)
        best = targets.merit(by_merit[0].figures)
        rows = [one.point.max_num_seqs for one in by_merit if targets.merit(one.figures) >= PROMISING * best]
        num = max(FEWEST, min(MOST, int(budget.left_s / 3 / GLANCE_S)))
        points = sorted(self._promising(rows, num), key=lambda point: point.max_num_seqs)
        quickest = _quickest([Ranked(*one, targets.merit(one.figures)) for one in curve], self._goal.slack).point
        return halve(points, self._told("settings", self._judged(curve)), budget, targets, also=quickest)

    def _promising(self, rows: Sequence[int], num: int) -> list[Point]:
        """Half of them near the usual settings, half by what the steps seen so far let expect of the whole grid."""
        loop, near = self._loop, self._space.around(rows, num=num)
        expect = expectation(loop.steps, mean_prompt=loop.mean_prompt, mean_output=loop.mean_output)
        if expect is None:
            return near
        usual = self._space.num_threads[0]  # the steps were timed with these
        known = [point for point in self._space.grid(rows) if point.num_threads == usual]
        expected = sorted(known, key=expect, reverse=True)
        return list(dict.fromkeys([*near[: num // 2], *expected, *near]))[:num]

    def _judged(self, curve: Sequence[Measured]) -> Measure:
        """How a point is measured when points are compared."""
        if not self._goal.rates:
            return self._loop.closed
        rate = max(self._goal.rates)
        num = self._num_under_way(rate, curve)
        return lambda point, seconds: self._loop.open(point, rate, seconds, num_under_way=num)

    def _num_under_way(self, rate: float, curve: Sequence[Measured]) -> int:
        """Requests that are there at once when so many come each second: the fewest rows that can serve them."""
        by_rows = sorted(curve, key=lambda one: one.point.max_num_seqs)
        wanted = rate * self._loop.mean_output
        enough = (one.point.max_num_seqs for one in by_rows if one.figures.tokens_per_s >= wanted)
        return next(enough, by_rows[-1].point.max_num_seqs)

    def _static(self, chosen: Point, budget: Budget) -> list[Measured]:
        """Our own engine, held back: what batches without joining would do here."""
        rows = [num for num in STATIC_ROWS if num <= max(self._space.max_num_seqs)]
        measure, found = self._told("static", self._loop.static), list[Measured]()
        for number, num in enumerate(rows):
            tokens = max(chosen.max_num_batched_tokens, self._space.usual(num).max_num_batched_tokens)
            point = Point(num, tokens, 1, chosen.num_threads)
            if budget.left_s <= 0 or not _try(measure, point, budget.left_s / (len(rows) - number), found):
                break
        self._loop.clear()
        return found

    def _open(self, chosen: Measured, curve: Sequence[Measured], budget: Budget) -> list[Under]:
        """The chosen setting under arrivals that wait for nobody."""
        capacity = chosen.figures.tokens_per_s / self._loop.mean_output
        rates = sorted(self._goal.rates) or [load * capacity for load in LOADS]
        found: list[Under] = []
        for number, rate in enumerate(rates):
            seconds, num = budget.left_s / (len(rates) - number), self._num_under_way(rate, curve)
            try:
                figures = self._loop.open(chosen.point, rate, seconds, num_under_way=num)
            except OutOfTimeError:
                break
            self._tell(f"{rate:.2f} requests/s", chosen.point, figures)
            found.append(Under(rate, figures))
        self._loop.clear()
        return found

    def _told(self, stage: str, measure: Measure) -> Measure:
        def measured(point: Point, seconds: float) -> Figures:
            figures = measure(point, seconds)
            self._seen.add(point)
            self._tell(stage, point, figures)
            return figures

        return measured


def choose(finalists: Sequence[Ranked], curve: Sequence[Measured], goal: Goal) -> Measured:
    """The best finalist within the targets, else the best such point of the curve, else the one that comes nearest.

    Of those that are as good but for the slack, the one whose readers wait least.
    """
    fallback = [Ranked(*one, goal.targets.merit(one.figures)) for one in curve]
    for pool in (finalists, fallback):
        held = [one for one in pool if goal.targets.are_held(one.figures)]
        if held:
            return Measured(*_quickest(held, goal.slack)[:2])
    return Measured(*max(finalists or fallback, key=lambda one: one.merit)[:2])


def _quickest(ranked: Sequence[Ranked], slack: float) -> Ranked:
    best = max(one.merit for one in ranked)
    return min((one for one in ranked if one.merit >= (1 - slack) * best), key=lambda one: one.figures.delay)


def _try(measure: Measure, point: Point, seconds: float, found: list[Measured]) -> bool:
    """False: the time is up."""
    try:
        found.append(Measured(point, measure(point, seconds)))
    except OutOfTimeError:
        return False
    return True


def _typical(one: Measured, others: Sequence[Measured]) -> Measured:
    again = [other.figures for other in others if other.point == one.point]
    return Measured(one.point, Figures.typical([one.figures, *again]))


def _knee(curve: Sequence[Measured]) -> Measured | None:
    by_rows = {one.point.max_num_seqs: one for one in curve}
    seen = [Seen(num, one.figures.tokens_per_s, one.figures.token_p50_ms) for num, one in by_rows.items()]
    found = knee(seen)
    return by_rows[found.num_rows] if found else None
