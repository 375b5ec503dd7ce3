"""Is the engine stuck? A hung device must lose its lease, an honest slow step must not. Pure; knows no server."""

import time
from collections.abc import Callable

from tokenmill_worker.engine.api import EngineStatistics


class StallWatch:
    """Stalled: there is work, and for `timeout_s` no step was finished. To be asked again and again."""

    def __init__(
        self,
        statistics: Callable[[], EngineStatistics],
        *,
        timeout_s: float,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._statistics = statistics
        self._timeout_s = timeout_s
        self._now_s = now_s
        self._num_steps: int | None = None  # None: idle when last seen
        self._moved_at_s = now_s()

    def is_stalled(self) -> bool:
        seen = self._statistics()
        num_steps = seen.num_steps if seen.num_waiting + seen.num_running else None
        if num_steps is None or num_steps != self._num_steps:
            self._num_steps = num_steps
            self._moved_at_s = self._now_s()
        return self._now_s() - self._moved_at_s > self._timeout_s
