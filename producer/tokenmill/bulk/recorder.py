"""What a run looked like: latencies of its rows and how it went over time, in bounded memory. Knows no files."""

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from tokenmill.bulk.progress import Tally

BUCKET_RATIO = 1.02  # latencies are kept to 2 %
SHORTEST_S = 1e-4
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
MAX_MOMENTS = 480  # as many as a picture has room for; each halving doubles their distance
FIRST_INTERVAL_S = 0.25

_LOG_RATIO = math.log(BUCKET_RATIO)


class Latencies:
    """A histogram with buckets of equal ratio; seconds."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._longest_s = 0.0

    def add(self, seconds: float) -> None:
        self._buckets[math.floor(math.log(max(seconds, SHORTEST_S) / SHORTEST_S) / _LOG_RATIO)] += 1
        self._longest_s = max(self._longest_s, seconds)

    def percentiles(self) -> dict[str, float]:
        """p50, p90, p99 and max; empty when there was none."""
        if not self._buckets:
            return {}
        return {**{name: round(self._at(share), 3) for name, share in PERCENTILES.items()}, "max": self._rounded_max}

    @property
    def _rounded_max(self) -> float:
        return round(self._longest_s, 3)

    def _at(self, share: float) -> float:
        """The upper end of the bucket below which that share of all lies."""
        wanted, seen = share * self._buckets.total(), 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                break
        return min(SHORTEST_S * BUCKET_RATIO ** (bucket + 1), self._longest_s)


class Moment(NamedTuple):
    """One look at a run, `s` seconds after its start; counts are of this run so far."""

    s: float
    num_done: int
    num_failed: int
    completion_tokens: int
    num_in_flight: int
    window: int


class Timeline:
    """Moments at equal distances, as many as fit."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_s = clock()
        self._interval_s = FIRST_INTERVAL_S
        self.moments: list[Moment] = []

    def look(self, tally: Tally, *, is_last: bool = False) -> None:
        s = self._clock() - self._started_s
        if self.moments and s - self.moments[-1].s < self._interval_s and not is_last:
            return
        counts = (tally.num_done, tally.num_failed, tally.completion_tokens, tally.num_in_flight, tally.window)
        self.moments.append(Moment(round(s, 3), *counts))
        if len(self.moments) > MAX_MOMENTS:
            self.moments = self.moments[::2]
            self._interval_s *= 2
