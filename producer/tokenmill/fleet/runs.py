"""Bulk runs for those who look at the fleet: as many as fit a screen, where RQ is installed. Knows no page."""

import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import PurePath
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tokenmill.fleet.values import RunLook
from tokenmill.wire.errors import TokenmillError

if TYPE_CHECKING:
    from tokenmill.bulk.jobs.board import RunBoard, RunStatus

MOST_RUNS = 12
REFRESH_S = 1.0  # a run tells its numbers once a second


class RunShelf:
    """`look` asks at most every REFRESH_S, and remembers what it was told. `url` is RQ's server."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._board: RunBoard | None = None
        self._runs: tuple[RunLook, ...] | None = None
        self._due_s = 0.0

    def look(self) -> tuple[RunLook, ...] | None:
        """The newest first. None: RQ is not installed, cannot use this server, or cannot be reached."""
        if find_spec("rq") is None:
            return None
        if time.monotonic() >= self._due_s:
            self._runs = self._ask()
            self._due_s = time.monotonic() + REFRESH_S
        return self._runs

    def close(self) -> None:
        if self._board is not None:
            self._board.store.close()

    def _ask(self) -> tuple[RunLook, ...] | None:
        from tokenmill.bulk.jobs.board import RunBoard

        try:
            self._board = self._board or RunBoard(self._url)
            return tuple(map(_look, self._board.latest_runs(MOST_RUNS)))
        except (TokenmillError, RedisError):
            return None


def _look(status: "RunStatus") -> RunLook:
    told = {**status.progress, **(status.report or {})}
    num_rows = told.get("num_rows")
    num_done, num_skipped, num_failed = (_integer(told, name) for name in ("num_done", "num_skipped", "num_failed"))
    return RunLook(
        run_id=status.run_id,
        state=status.state,
        is_stopping=status.is_stopping,
        out=PurePath(status.out).name,
        num_rows=num_rows if isinstance(num_rows, int) else None,
        num_settled=num_done + num_skipped + num_failed,
        num_failed=num_failed,
        num_in_flight=0 if status.is_final else _integer(told, "num_in_flight"),
        rows_per_s=_number(told, "rows_per_s") or 0.0,
        tokens_per_s=_number(told, "tokens_per_s") or 0.0,
        eta_s=None if status.is_final else _number(told, "eta_s"),
        submitted=status.submitted,
        note=status.error or status.note,
    )


def _integer(told: Mapping[str, object], name: str) -> int:
    value = told.get(name)
    return value if isinstance(value, int) else 0


def _number(told: Mapping[str, object], name: str) -> float | None:
    value = told.get(name)
    return float(value) if isinstance(value, (int, float)) else None
