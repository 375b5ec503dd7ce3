"""One run: the missing rows of an input go out, their answers come back and are written. Knows no Redis and no screen.

    while there are rows to send or rows in flight:
        fill the window, settle what came back, sync now and then

Rows in flight are bounded by the window, and what is done is looked up on disk, so memory does not grow with the
input. Nothing is connected (and no local worker started) before a missing row is found.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from tokenmill.bulk.answers import Answer
from tokenmill.bulk.eta import LOOK_INTERVAL_S, Estimator
from tokenmill.bulk.identity import custom_id_of
from tokenmill.bulk.inputs import count_rows
from tokenmill.bulk.ledger import opened_ledger
from tokenmill.bulk.lookahead import neighbours
from tokenmill.bulk.output import OutputFile
from tokenmill.bulk.outputs.paths import own_files
from tokenmill.bulk.planner import OutgoingRow, Planner
from tokenmill.bulk.progress import ProgressView, Tally
from tokenmill.bulk.pulse import WorkerTold
from tokenmill.bulk.recorder import Latencies, Timeline
from tokenmill.bulk.report import Ending, RunReport
from tokenmill.bulk.rows import BadRow, Fields
from tokenmill.bulk.spec import RunSpec
from tokenmill.bulk.window import Window

SYNC_ROWS = 2_000  # rows that a power cut may cost at most, and the server still has them ...
SYNC_INTERVAL_S = 1.0  # ... or this much time's worth: whichever comes first
WAIT_S = 0.5  # how long one wait for answers may take: bounds the reaction to Ctrl-C and to a dead worker
MAX_REASON_CHARS = 200  # of the first failure, as the report tells it; the errors file has all of it
UPDATE_ROWS = 1_000  # while rows are only skipped, the screen is refreshed this often


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

    def workers(self) -> Mapping[str, WorkerTold]:
        """All that are alive, by process."""
        ...

    def abandon(self) -> None:
        """Nobody will ask for the rows in flight: they are cancelled."""
        ...


class EndedError(Exception):
    """The run ends here, with rows missing."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending = ending


class InFlight(NamedTuple):
    row: OutgoingRow
    sent_s: float


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
        only: frozenset[str] | None = None,
    ) -> None:
        self._spec = spec
        self._only = only
        self._output = output
        self._connect = connect
        self._view = view
        self._should_stop = should_stop
        self._tally = Tally(num_rows=0)
        self._window = Window(spec.window)
        self._estimator = Estimator()
        self._looked_s = -math.inf
        self._latencies = Latencies()
        self.timeline = Timeline()
        self._unsent: deque[OutgoingRow] = deque()
        self._in_flight: dict[str, InFlight] = {}
        self._num_bytes = 0  # of prompts in flight
        self._unsynced_ids: list[str] = []
        self._synced_s = time.monotonic()
        self._started_at = ""
        self._elapsed_s = 0.0
        self._first_error: str | None = None
        self._ending: Ending = "complete"

    def run(self) -> RunReport:
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        with opened_ledger(self._output.folder) as self._ledger:
            self._load_done_rows()
            own = own_files(Path(self._spec.out))
            num_rows = count_rows(self._spec.input, limit=self._spec.limit, exclude=own) or 0
            self._tally.num_rows = num_rows * self._spec.samples
            self._work()
            self._put_in_order()
        return self.report()

    def _work(self) -> None:
        try:
            missing = neighbours(self._planner().missing_rows())
            first = next(missing, None)
            if first is not None:
                self._unsent.append(first)
                self._work_on(self._connect(), missing)
        except EndedError as ended:
            self._ending = ended.ending

    def _work_on(self, queue: RequestQueue, missing: Iterator[OutgoingRow]) -> None:
        started_s = time.monotonic()
        self.timeline = Timeline()
        self._view.start(self._tally)
        self.timeline.look(self._tally)
        try:
            self._drive(queue, missing)
        except EndedError as ended:
            if ended.ending == "too_many_errors":
                queue.abandon()
            raise
        finally:
            self._sync(queue=None)
            self._elapsed_s = time.monotonic() - started_s
            self.timeline.look(self._tally, is_last=True)
            self._view.stop(self._tally)

    def _planner(self) -> Planner:
        run_id = self._output.run_id
        return Planner(
            self._spec,
            run_id,
            self._ledger,
            on_skip=self._count_skipped,
            on_refuse=self._refuse,
            only=self._only,
        )

    def _drive(self, queue: RequestQueue, missing: Iterator[OutgoingRow]) -> None:
        self._fill(queue, missing)
        while self._in_flight or self._unsent:
            self._end_if_asked()
            for answer in queue.wait(WAIT_S):
                self._settle(answer)
            if self._is_sync_due():
                self._sync(queue)
            self._fill(queue, missing)
            self._show()
        self._sync(queue)

    def _show(self) -> None:
        self._tally.num_in_flight, self._tally.window = len(self._in_flight), self._window.num_rows
        num_unsent = max(0, self._tally.num_rows - self._tally.num_settled - len(self._in_flight))
        self._tally.eta_s = self._estimator.eta_s(num_unsent, now_s=time.monotonic())
        self.timeline.look(self._tally)
        self._view.update(self._tally)

    def _end_if_asked(self) -> None:
        if self._should_stop():
            raise EndedError("stopped")

    def _load_done_rows(self) -> None:
        for done in self._output.done_rows():
            self._ledger.mark_done(done.row_hash, done.start)

    def _count_skipped(self, num: int) -> None:
        before = self._tally.num_skipped
        self._tally.num_skipped += num
        if self._tally.num_skipped // UPDATE_ROWS > before // UPDATE_ROWS:
            self._view.update(self._tally)
            self._end_if_asked()

    def _refuse(self, num: int, row: BadRow, code: str) -> None:
        error: Fields = {"code": code, "message": row.reason}
        self._fail(num, {"row": row.number, "input": row.source, "error": error})

    def _fail(self, num: int, line: Fields) -> None:
        """A line in the errors file, for `num` completions that will be missing."""
        self._output.append_error(line)
        self._first_error = self._first_error or _reason(line)
        self._tally.num_failed += num
        most = self._spec.max_errors
        if most is not None and self._tally.num_failed > most:
            raise EndedError("too_many_errors")

    # --- rows out and back ---

    def _fill(self, queue: RequestQueue, missing: Iterator[OutgoingRow]) -> None:
        self._look_at_workers(queue)
        while not self._window.is_full(len(self._in_flight) + len(self._unsent), self._num_bytes):
            row = next(missing, None)
            if row is None:
                break
            self._unsent.append(row)
            self._num_bytes += len(row.submission.body)
        self._send(queue)

    def _look_at_workers(self, queue: RequestQueue) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_INTERVAL_S:
            return
        self._looked_s, workers = now_s, queue.workers()
        self._estimator.hear(workers, now_s=now_s)
        if self._window.is_look_due():
            num_slots = sum(told.num_slots for told in workers.values())
            self._window.look(num_slots=num_slots, num_settled=self._tally.num_done + self._tally.num_failed)

    def _send(self, queue: RequestQueue) -> None:
        """Sends what is unsent; busy rows stay, a row whose id is spent goes again under the next one."""
        while self._unsent:
            rows = list(self._unsent)
            self._unsent.clear()
            statuses = queue.send(rows)
            now_s = time.monotonic()
            taken = {row.request_id: InFlight(row, now_s) for row in _with_status("taken", rows, statuses)}
            self._in_flight.update(taken)
            for name, (row, _) in taken.items():
                self._estimator.begin(name, row.max_tokens, now_s=now_s)
            self._unsent.extend(row.again() for row in _with_status("spent", rows, statuses))
            if busy := _with_status("busy", rows, statuses):
                self._unsent.extend(busy)
                return

    def _settle(self, answer: Answer) -> None:
        row, sent_s = self._in_flight.pop(answer.request_id)
        self._num_bytes -= len(row.submission.body)
        self._unsynced_ids.append(answer.request_id)
        now_s = time.monotonic()
        self._latencies.add(now_s - sent_s)
        self._learn(answer, now_s)
        self._tally.prompt_tokens += answer.prompt_tokens
        self._tally.completion_tokens += answer.completion_tokens
        self._tally.cached_tokens += answer.cached_tokens
        if answer.error is None:
            self._write_done(row, answer)
        else:
            self._fail(1, _error_row(row, answer.error))

    def _learn(self, answer: Answer, now_s: float) -> None:
        if answer.error is not None:
            self._estimator.drop(answer.request_id, now_s=now_s)
            return
        self._estimator.end(
            answer.request_id,
            num_tokens=answer.completion_tokens // max(1, len(answer.choices)),
            num_prompt_tokens=answer.prompt_tokens - answer.cached_tokens,
            is_cut=answer.finish_reason == "length",
            now_s=now_s,
        )

    def _write_done(self, row: OutgoingRow, answer: Answer) -> None:
        start = self._output.append(_done_row(row, answer, has_samples=self._spec.samples > 1))
        self._ledger.mark_done(row.row_hash, start)
        self._tally.num_done += 1
        self._tally.finish_reasons[answer.finish_reason] += 1

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

    def report(self) -> RunReport:
        """As far as it has come, also when something else than its end has ended it."""
        tally = self._tally
        return RunReport(
            num_rows=max(tally.num_rows, tally.num_settled),
            num_skipped=tally.num_skipped,
            num_done=tally.num_done,
            num_failed=tally.num_failed,
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
            cached_tokens=tally.cached_tokens,
            finish_reasons=dict(sorted(tally.finish_reasons.items())),
            elapsed_s=round(self._elapsed_s, 3),
            latency_s=self._latencies.percentiles(),
            started_at=self._started_at,
            out=str(self._output.path),
            errors=str(self._output.errors_path) if tally.num_failed else None,
            first_error=self._first_error,
            ending=self._ending,
        )


def _with_status(status: SendStatus, rows: Sequence[OutgoingRow], statuses: Sequence[SendStatus]) -> list[OutgoingRow]:
    return [row for row, its_status in zip(rows, statuses, strict=True) if its_status == status]


def _done_row(row: OutgoingRow, answer: Answer, *, has_samples: bool) -> Fields:
    """A line of the output: nothing in it depends on scheduling, so two runs of one recipe write equal lines."""
    asked_for: Fields = {"choices": list(answer.choices)} if answer.choices else {}
    if answer.logprobs is not None:
        asked_for["logprobs"] = list(answer.logprobs)
    return {
        "custom_id": custom_id_of(row.row.fields, row.row_hash),
        "row_hash": row.row_hash,
        **({"sample": row.sample} if has_samples else {}),
        "input": row.row.fields,
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "usage": {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        },
        **asked_for,
    }


def _error_row(row: OutgoingRow, error: tuple[str, str]) -> Fields:
    code, message = error
    return {
        "row": row.row.number,
        "custom_id": custom_id_of(row.row.fields, row.row_hash),
        "row_hash": row.row_hash,
        "input": row.row.fields,
        "error": {"code": code, "message": message},
    }


def _reason(error_line: Fields) -> str:
    error = error_line["error"]
    message = str(error["message"]) if isinstance(error, dict) else ""
    return message if len(message) <= MAX_REASON_CHARS else message[:MAX_REASON_CHARS] + "..."


def _is_ascending(numbers: Iterator[int]) -> bool:
    last = -1
    for number in numbers:
        if number < last:
            return False
        last = number
    return True
