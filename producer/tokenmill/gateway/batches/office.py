"""Batches as runs: taken in, handed to the bulk workers, looked at, ended. Blocks; knows no HTTP.

A batch is a folder below the shared one. Its record says what was asked for and how it ended; in between, the run does,
which RQ carries. Whoever looks at a batch moves it on: a gateway that dies leaves nothing that another one, at the
next look, does not find and finish. The files are the truth: a run that RQ's server has lost is handed in again.
"""

import fcntl
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from redis.exceptions import RedisError

from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.jobs.board import RunBoard, RunConflictError, RunNotFoundError, RunStatus
from tokenmill.bulk.jobs.places import portable, run_id_of
from tokenmill.bulk.spec import InputSpec, QueueSpec, RunSpec
from tokenmill.gateway.batches.check import check_input
from tokenmill.gateway.batches.harvest import Ending, clear, harvest
from tokenmill.gateway.batches.record import ID_PREFIX, BatchError, BatchRecord, Counts
from tokenmill.gateway.documents import Page, is_id, new_id, page_of, read_record, write_record
from tokenmill.gateway.shelf import FileShelf, StoredFile
from tokenmill.wire.errors import InvalidRequestError, TokenmillError

log = logging.getLogger("tokenmill.gateway")

WINDOW_S = 86_400
MAX_CLOCK_SKEW_S = 5  # a bulk worker's clock may be ahead of ours when it stops a run at its deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a client asks for; checked already, but for the input's content."""

    owner: str
    queue: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None
    output_expires_after_s: int | None


class BatchOffice:
    """All batches below a folder. Threads may share it."""

    def __init__(
        self,
        shelf: FileShelf,
        *,
        redis_url: str,
        rq_url: str,
        partitions: int,
        max_requests: int,
        is_served: Callable[[str, str], bool] = lambda queue, model: True,
    ) -> None:
        """`is_served`: does anybody on that queue answer for that model? True also while nobody is there to say."""
        self._shelf = shelf
        self._redis_url = redis_url
        self._partitions = partitions
        self._max_requests = max_requests
        self._is_served = is_served
        self._board = RunBoard(rq_url)
        self._folder = shelf.root / "openai" / "batches"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._pool = ThreadPoolExecutor(1, "batches")
        self._begun: set[str] = set()
        self._guard = threading.Lock()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._board.__exit__()

    # --- what clients ask for ---

    def create(self, source: StoredFile, wish: Wish) -> BatchRecord:
        """Returns at once; the input is read by `advance`. OSError: the disk."""
        now = int(time.time())
        record = BatchRecord(
            batch_id=new_id(ID_PREFIX),
            owner=wish.owner,
            queue=wish.queue,
            input_file_id=source.file_id,
            endpoint=wish.endpoint,
            completion_window=wish.completion_window,
            created_at=now,
            expires_at=now + WINDOW_S,
            metadata=wish.metadata,
            output_expires_after_s=wish.output_expires_after_s,
        )
        self._place(record.batch_id).mkdir()
        _link(self._shelf.content(source), self._source(record.batch_id))
        self._write(record)
        self._begin_soon(record.batch_id)
        return record

    def find(self, batch_id: str, owner: str) -> BatchRecord | None:
        """As it stands now. None also for a batch of somebody else."""
        record = self._read(batch_id)
        return None if record is None or record.owner != owner else self._look(record)

    def page(self, owner: str, *, after: str | None, limit: int) -> Page[BatchRecord]:
        """The newest first."""
        ids = (path.name for path in self._folder.iterdir())
        return page_of(ids, lambda batch_id: self.find(batch_id, owner), after=after, limit=limit, is_newest_first=True)

    def cancel(self, batch_id: str) -> BatchRecord:
        """RunConflictError: it has ended."""
        with self._locked(batch_id):
            record = self._known(batch_id)
            if record.is_final:
                raise RunConflictError(f"Cannot cancel a batch with status {record.status!r}.")
            if record.cancelling_at is None:
                record = self._write(replace(record, cancelling_at=int(time.time())))
        self._stop(record)
        return self._look(record)

    # --- how a batch moves on ---

    def resume(self) -> None:
        """At the start of a gateway: what another one had begun to read."""
        for path in self._folder.iterdir():
            record = self._read(path.name)
            if record is not None and record.status == "validating":
                self._begin_soon(record.batch_id)

    def begin(self, batch_id: str) -> None:
        """Reads the input and hands the run in; does nothing where that was done, or somebody is at it."""
        with self._locked(batch_id, wait=False) as is_ours:
            record = self._known(batch_id) if is_ours else None
            if record is None or record.status != "validating":
                return
            if record.cancelling_at is not None:
                self._end(record, "cancelled")
                return
            checked = check_input(self._source(batch_id), endpoint=record.endpoint, max_requests=self._max_requests)
            errors = checked.errors
            if not errors and checked.model is not None and not self._is_served(record.queue, checked.model):
                errors = (BatchError(code="model_not_found", message=f"The model {checked.model!r} does not exist."),)
            record = replace(record, model=checked.model, counts=Counts(total=checked.num_requests))
            if errors:
                self._end(replace(record, errors=errors, counts=Counts()), "failed")
                return
            self._submit(record)
            self._write(replace(record, status="in_progress", in_progress_at=int(time.time())))

    def _look(self, record: BatchRecord) -> BatchRecord:
        if record.is_final:
            return record
        if record.status == "validating":
            self._begin_soon(record.batch_id)
            return record
        try:
            run = self._board.status(self._run_id(record))
        except RunNotFoundError:
            return self._without_run(record)
        if run.is_final:
            return self._settle(record, run)
        if record.expires_at <= time.time():
            self._stop(record)
        return _in_progress(record, run)

    def _without_run(self, record: BatchRecord) -> BatchRecord:
        """RQ's server has lost it."""
        if record.cancelling_at is not None or record.expires_at <= time.time():
            return self._settle(record, None)
        self._submit(record)
        return record

    def _settle(self, record: BatchRecord, run: RunStatus | None) -> BatchRecord:
        """Of a run that is over: written down once, by whoever looks first."""
        with self._locked(record.batch_id):
            record = self._known(record.batch_id)
            return record if record.is_final else self._end(record, _ending(record, run), run)

    def _end(self, record: BatchRecord, ending: Ending, run: RunStatus | None = None) -> BatchRecord:
        now = int(time.time())
        source, out = self._source(record.batch_id), self._out(record.batch_id)
        if not record.errors:
            found = harvest(out, source, ending)
            total = max(record.counts.total, found.num_completed + found.num_failed)
            record = replace(
                record,
                counts=Counts(total, found.num_completed, found.num_failed),
                usage=found.usage,
                finalizing_at=now if ending == "completed" else None,
                output_file_id=self._adopt(record, found.output, "output"),
                error_file_id=self._adopt(record, found.errors, "error"),
            )
        if ending == "failed" and run is not None:
            record = replace(record, errors=(BatchError(code="run_failed", message=run.error or "the run failed"),))
        times = {f"{ending}_at": now}
        record = self._write(replace(record, status=ending, **times))  # type: ignore[arg-type]  # one of four names
        clear(out, source)
        return record

    def _adopt(self, record: BatchRecord, path: Path | None, kind: str) -> str | None:
        if path is None:
            return None
        file_id = f"file-{record.batch_id.removeprefix(ID_PREFIX)[:-1]}{'e' if kind == 'error' else 'f'}"
        self._shelf.adopt(
            file_id,
            path,
            filename=f"{record.batch_id}_{kind}.jsonl",
            purpose="batch_output",
            owner=record.owner,
            expires_after_s=record.output_expires_after_s,
        )
        return file_id

    # --- its run ---

    def _submit(self, record: BatchRecord) -> None:
        """Again, while it is on its way, it is the same run."""
        with suppress(RunConflictError):
            self._board.submit(portable(self._spec(record), self._shelf.root))

    def _spec(self, record: BatchRecord) -> RunSpec:
        return RunSpec(
            input=InputSpec(paths=(str(self._source(record.batch_id)),), format="openai"),
            out=str(self._out(record.batch_id)),
            out_format="openai",
            recipe=Recipe(),
            tenant=record.owner,
            deadline=record.expires_at,
            queue=QueueSpec(name=record.queue, partitions=self._partitions),
        )

    def _stop(self, record: BatchRecord) -> None:
        """Whoever executes a run cancels its requests; of one that nobody executes, we do."""
        run_id = self._run_id(record)
        with suppress(RunNotFoundError):
            self._board.stop(run_id)
            if self._board.status(run_id).state != "running":
                self._board.cancel_leftovers(run_id, self._redis_url)

    def _run_id(self, record: BatchRecord) -> str:
        return run_id_of(str(self._out(record.batch_id).relative_to(self._shelf.root)))

    # --- its folder ---

    def _place(self, batch_id: str) -> Path:
        return self._folder / batch_id

    def _source(self, batch_id: str) -> Path:
        return self._place(batch_id) / "input.jsonl"

    def _out(self, batch_id: str) -> Path:
        return self._place(batch_id) / f"{batch_id}.jsonl"

    def _read(self, batch_id: str) -> BatchRecord | None:
        if not is_id(batch_id, ID_PREFIX):
            return None
        value = read_record(self._place(batch_id) / "batch.json")
        return None if value is None else BatchRecord.from_json(value)

    def _known(self, batch_id: str) -> BatchRecord:
        record = self._read(batch_id)
        if record is None:
            raise InvalidRequestError(f"there is no batch {batch_id!r}", code="not_found")
        return record

    def _write(self, record: BatchRecord) -> BatchRecord:
        write_record(self._place(record.batch_id) / "batch.json", record.to_json())
        return record

    @contextmanager
    def _locked(self, batch_id: str, *, wait: bool = True) -> Iterator[bool]:
        """One process and one thread at a time; dies with its holder. False: somebody has it, and `wait` is not."""
        handle = os.open(self._place(batch_id) / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)

    def _begin_soon(self, batch_id: str) -> None:
        with self._guard:
            if batch_id in self._begun:
                return
            self._begun.add(batch_id)
        self._pool.submit(self._begin_logged, batch_id)

    def _begin_logged(self, batch_id: str) -> None:
        try:
            self.begin(batch_id)
        except (TokenmillError, RedisError, OSError) as error:  # whoever looks at it next tries again
            log.warning("batch %s could not begin: %s", batch_id, error)
        finally:
            with self._guard:
                self._begun.discard(batch_id)


def _in_progress(record: BatchRecord, run: RunStatus) -> BatchRecord:
    """With the counts of its run; once all is settled, the files are being written."""
    told = {name: value for name, value in run.progress.items() if isinstance(value, int)}
    done, failed = told.get("num_done", 0) + told.get("num_skipped", 0), told.get("num_failed", 0)
    counts = Counts(record.counts.total, done, failed)
    is_done = run.state == "running" and done + failed >= record.counts.total
    return replace(record, counts=counts, status="finalizing" if is_done else "in_progress")


def _ending(record: BatchRecord, run: RunStatus | None) -> Ending:
    """`bulk stop` of an operator is told as a cancellation."""
    if run is not None and run.state == "done":
        return "completed"
    if run is not None and run.state == "failed":
        return "failed"
    is_late = record.cancelling_at is None and record.expires_at <= time.time() + MAX_CLOCK_SKEW_S
    return "expired" if is_late else "cancelled"


def _link(source: Path, target: Path) -> None:
    """The same content under a second name, so that the upload may be deleted; a copy where there are no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
