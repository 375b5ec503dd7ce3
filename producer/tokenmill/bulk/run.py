"""One run: the missing rows of an input go out, their answers come back and are written. Knows no Redis and no screen.

    while there are rows to send or rows in flight:
        fill the window, settle what came back, sync now and then

Rows in flight are bounded by the window, and what is done is looked up on disk, so memory does not grow with the
input. Nothing is connected (and no local worker started) before a missing row is found.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from tokenmill.bulk.identity import custom_id_of
from tokenmill.bulk.ledger import Ledger
from tokenmill.bulk.output import OutputFile
from tokenmill.bulk.planner import OutgoingRow, Planner, input_path
from tokenmill.bulk.progress import ProgressView, Tally
from tokenmill.bulk.rows import BadRow, Fields, count_rows
from tokenmill.bulk.spec import RunSpec

SYNC_ROWS = 256  # rows that a power cut may cost at most ...
SYNC_INTERVAL_S = 1.0  # ... or this much time's worth: whichever comes first
WAIT_S = 0.5  # how long one wait for answers may take: bounds the reaction to Ctrl-C and to a dead worker
DEFAULT_WINDOW = 256  # four workers' worth of 64 rows: none of them waits for this process
UPDATE_ROWS = 1_000  # while rows are only skipped, the screen is refreshed this often


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A request's final word. `error` (code, message): it failed, and `text` is what there is of it."""

    request_id: str
    text: str = ""
    token_ids: Sequence[int] = ()
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: tuple[str, str] | None = None


SendStatus = Literal["taken", "spent", "busy"]


class RequestQueue(Protocol):
    """Where rows go and answers come from."""

    def send(self, rows: Sequence[OutgoingRow]) -> list[SendStatus]:
        """taken: its answer will come (also when an earlier run sent it). spent: the id's answer is an earlier
        failure. busy: not now."""
        ...

    def wait(self, timeout_s: float) -> list[Answer]:
        """Answers as they come; empty when none came in time. Each request sent is answered once."""
        ...

    def forget(self, request_ids: Sequence[str]) -> None:
        """These are safe on disk; the server need not keep them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What became of a run. Done and failed rows are this run's; skipped ones were done before.

    `elapsed_s` is the time from the first row sent to the last one written; starting a local worker is not in it.
    """

    num_rows: int
    num_skipped: int
    num_done: int
    num_failed: int
    prompt_tokens: int
    completion_tokens: int
    finish_reasons: dict[str, int]
    elapsed_s: float
    out: str
    errors: str | None
    is_stopped: bool = False  # somebody asked for it: rows may be missing, the next run does them

    def describe(self) -> Fields:
        return {**asdict(self), "finish_reasons": dict(self.finish_reasons)}


class BulkRun:
    """Owns the rows in flight. `connect` is called once, when the first missing row is found."""

    def __init__(
        self,
        spec: RunSpec,
        output: OutputFile,
        connect: Callable[[], RequestQueue],
        view: ProgressView,
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._spec = spec
        self._should_stop = should_stop
        self._is_stopped = False
        self._output = output
        self._connect = connect
        self._view = view
        self._tally = Tally(num_rows=0)
        self._unsent: deque[OutgoingRow] = deque()
        self._in_flight: dict[str, OutgoingRow] = {}
        self._unsynced_ids: list[str] = []
        self._synced_s = time.monotonic()
        self._elapsed_s = 0.0
        self._window = spec.window or DEFAULT_WINDOW

    def run(self) -> RunReport:
        self._ledger = Ledger(self._output.folder / "ledger.sqlite")
        try:
            self._load_done_rows()
            self._tally.num_rows = count_rows(input_path(self._spec), limit=self._spec.limit)
            self._work()
            self._put_in_order()
        finally:
            self._ledger.close()
        return self._report()

    def _work(self) -> None:
        missing = self._planner().missing_rows()
        first = next(missing, None)
        if first is None:
            return
        queue = self._connect()
        started_s = time.monotonic()
        self._unsent.append(first)
        self._view.start(self._tally)
        try:
            self._drive(queue, missing)
        finally:
            self._sync(queue=None)
            self._elapsed_s = time.monotonic() - started_s
            self._view.stop(self._tally)

    def _planner(self) -> Planner:
        run_id = self._output.run_id
        return Planner(self._spec, run_id, self._ledger, on_skip=self._count_skipped, on_refuse=self._refuse)

    def _drive(self, queue: RequestQueue, missing: Iterator[OutgoingRow]) -> None:
        self._fill(queue, missing)
        while self._in_flight or self._unsent:
            if self._should_stop():
                self._is_stopped = True
                break
            for answer in queue.wait(WAIT_S):
                self._settle(answer)
            if self._is_sync_due():
                self._sync(queue)
            self._fill(queue, missing)
            self._view.update(self._tally)
        self._sync(queue)

    def _load_done_rows(self) -> None:
        for done in self._output.done_rows():
            self._ledger.mark_done(done.row_hash, done.start)

    def _count_skipped(self) -> None:
        self._tally.num_skipped += 1
        if self._tally.num_skipped % UPDATE_ROWS == 0:
            self._view.update(self._tally)

    def _refuse(self, row: BadRow, code: str) -> None:
        self._tally.num_failed += 1
        error: Fields = {"code": code, "message": row.reason}
        self._output.append_error({"row": row.number, "input": row.source, "error": error})

    # --- rows out and back ---

    def _fill(self, queue: RequestQueue, missing: Iterator[OutgoingRow]) -> None:
        while len(self._in_flight) + len(self._unsent) < self._window:
            row = next(missing, None)
            if row is None:
                break
            self._unsent.append(row)
        self._send(queue)

    def _send(self, queue: RequestQueue) -> None:
        """Sends what is unsent; busy rows stay, a row whose id is spent goes again under the next one."""
        while self._unsent:
            rows = list(self._unsent)
            self._unsent.clear()
            statuses = queue.send(rows)
            self._in_flight.update(_with_status("taken", rows, statuses))
            spent = _with_status("spent", rows, statuses).values()
            self._unsent.extend(row._replace(attempt=row.attempt + 1) for row in spent)
            if busy := _with_status("busy", rows, statuses):
                self._unsent.extend(busy.values())
                return

    def _settle(self, answer: Answer) -> None:
        row = self._in_flight.pop(answer.request_id)
        self._unsynced_ids.append(answer.request_id)
        self._tally.prompt_tokens += answer.prompt_tokens
        self._tally.completion_tokens += answer.completion_tokens
        if answer.error is not None:
            self._write_error(row, answer.error)
        else:
            self._write_done(row, answer)

    def _write_done(self, row: OutgoingRow, answer: Answer) -> None:
        start = self._output.append(_done_row(row, answer))
        self._ledger.mark_done(row.row_hash, start)
        self._tally.num_done += 1
        self._tally.finish_reasons[answer.finish_reason] += 1

    def _write_error(self, row: OutgoingRow, error: tuple[str, str]) -> None:
        code, message = error
        self._tally.num_failed += 1
        self._output.append_error(
            {
                "row": row.row.number,
                "custom_id": custom_id_of(row.row.fields, row.row_hash),
                "row_hash": row.row_hash,
                "input": row.row.fields,
                "error": {"code": code, "message": message},
            }
        )

    # --- on disk ---

    def _is_sync_due(self) -> bool:
        is_late = time.monotonic() - self._synced_s >= SYNC_INTERVAL_S
        return bool(self._unsynced_ids) and (is_late or self._output.num_unsynced >= SYNC_ROWS)

    def _sync(self, queue: RequestQueue | None) -> None:
        self._output.sync()
        self._synced_s = time.monotonic()
        if queue is not None and self._unsynced_ids:
            queue.forget(self._unsynced_ids)
            self._unsynced_ids = []

    def _put_in_order(self) -> None:
        if self._spec.order == "input" and not _is_ascending(self._ledger.starts_in_input_order()):
            self._output.reorder(self._ledger.starts_in_input_order())

    def _report(self) -> RunReport:
        tally = self._tally
        return RunReport(
            num_rows=tally.num_rows,
            num_skipped=tally.num_skipped,
            num_done=tally.num_done,
            num_failed=tally.num_failed,
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
            finish_reasons=dict(sorted(tally.finish_reasons.items())),
            elapsed_s=round(self._elapsed_s, 3),
            out=str(self._output.path),
            errors=str(self._output.errors_path) if tally.num_failed else None,
            is_stopped=self._is_stopped,
        )


def _with_status(
    status: SendStatus, rows: Sequence[OutgoingRow], statuses: Sequence[SendStatus]
) -> dict[str, OutgoingRow]:
    pairs = zip(rows, statuses, strict=True)
    return {row.request_id: row for row, its_status in pairs if its_status == status}


def _done_row(row: OutgoingRow, answer: Answer) -> Fields:
    """A line of the output: nothing in it depends on scheduling, so two runs of one recipe write equal lines."""
    return {
        "custom_id": custom_id_of(row.row.fields, row.row_hash),
        "row_hash": row.row_hash,
        "input": row.row.fields,
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "usage": {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        },
    }


def _is_ascending(numbers: Iterator[int]) -> bool:
    last = -1
    for number in numbers:
        if number < last:
            return False
        last = number
    return True
