"""A time budget that is kept: what is left, and each stage's share of it. Pure but for the clock it is given."""

import time
from collections.abc import Callable


class Budget:
    """`seconds` from now on. Stages ask for a share of what is left when they begin, so nobody's delay is the end's."""

    def __init__(self, seconds: float, *, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self.started_s = now()
        self.deadline_s = self.started_s + seconds

    @property
    def left_s(self) -> float:
        return max(0.0, self.deadline_s - self._now())

    @property
    def spent_s(self) -> float:
        return self._now() - self.started_s

    def share(self, part: float) -> "Budget":
        """That part of what is left, as a budget of its own."""
        return Budget(part * self.left_s, now=self._now)
