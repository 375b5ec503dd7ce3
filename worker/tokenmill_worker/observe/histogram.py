"""Counts of values by upper bound, cheap enough for the engine's thread. Knows no metric and no exporter."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

SECONDS = (  # from one step on a GPU to a bulk row that waited for a day
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    *(30.0, 60.0, 300.0, 1_800.0, 7_200.0, 86_400.0),
)
STEP_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
TOKENS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
ROWS = tuple(float(2**power) for power in range(13))


class Histogram:
    """One thread observes, or those that do take turns; any may look, and sees a value at most one too few."""

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, *, times: int = 1) -> None:
        self._counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        return sum(self._counts)

    def cumulative(self) -> list[tuple[float, int]]:
        """(upper bound, values at or below it) for each bound, and for infinity."""
        return list(zip((*self.bounds, float("inf")), accumulate(self._counts), strict=True))
