"""Shows a run to those who look at its job: its progress as JSON, once a second. Knows no rq and no rows."""

import time
from collections.abc import Callable
from typing import TypeAlias

from tokenmill.bulk.progress import Pacemaker, Tally
from tokenmill.bulk.rows import Fields

INTERVAL_S = 1.0

Publish: TypeAlias = Callable[[Fields], None]


class JobView:
    """A ProgressView. `publish` gets the run's numbers; `count` the rows and tokens finished since it was last told."""

    def __init__(self, publish: Publish, count: Callable[[int, int], None]) -> None:
        self._publish = publish
        self._count = count
        self._pacemaker = Pacemaker()
        self._told_s = 0.0
        self._counted = (0, 0)

    def start(self, tally: Tally) -> None:
        self._tell(tally)

    def update(self, tally: Tally) -> None:
        if time.monotonic() - self._told_s >= INTERVAL_S:
            self._tell(tally)

    def note(self, message: str) -> None:
        self._publish({"note": message})

    def stop(self, tally: Tally) -> None:
        self._tell(tally)

    def _tell(self, tally: Tally) -> None:
        self._told_s = time.monotonic()
        now = (tally.num_done, tally.prompt_tokens + tally.completion_tokens)
        self._count(now[0] - self._counted[0], now[1] - self._counted[1])
        self._counted = now
        pace = self._pacemaker.look(tally)
        news: Fields = {"note": None} if tally.num_done else {}
        self._publish(
            {
                **news,
                "num_rows": tally.num_rows,
                "num_settled": tally.num_settled,
                "num_skipped": tally.num_skipped,
                "num_done": tally.num_done,
                "num_failed": tally.num_failed,
                "num_in_flight": tally.num_in_flight,
                "prompt_tokens": tally.prompt_tokens,
                "cached_tokens": tally.cached_tokens,
                "completion_tokens": tally.completion_tokens,
                "rows_per_s": round(pace.rows_per_s, 2),
                "tokens_per_s": round(pace.tokens_per_s, 1),
                "eta_s": None if pace.eta_s is None else round(pace.eta_s, 1),
            }
        )
