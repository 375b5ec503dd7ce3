"""What happened lately in this worker: how long first tokens took, and which requests failed. Knows no server."""

import threading
from collections import deque
from typing import NamedTuple

WINDOW_S = 60.0
MOST_SAMPLES = 2_000  # of the window: more would not change its percentiles
MOST_FAILURES = 10


class Percentiles(NamedTuple):
    """Of the window, in ms; None where nothing was measured."""

    p50: float | None = None
    p95: float | None = None


class RecentTimes:
    """Durations of the last WINDOW_S. Any thread adds, any thread asks; `now_s` by any clock that only grows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, float]] = deque(maxlen=MOST_SAMPLES)

    def add(self, duration_ms: float, *, now_s: float) -> None:
        with self._lock:
            self._samples.append((now_s, duration_ms))

    def percentiles(self, *, now_s: float) -> Percentiles:
        with self._lock:
            durations = sorted(ms for at_s, ms in self._samples if at_s >= now_s - WINDOW_S)
        if not durations:
            return Percentiles()
        last = len(durations) - 1
        return Percentiles(*(round(durations[round(share * last)], 1) for share in (0.5, 0.95)))


class Failure(NamedTuple):
    """A request whose last word was an error: its code, and when (server ms). The message may quote what was asked."""

    at_ms: int
    request_id: str
    code: str
