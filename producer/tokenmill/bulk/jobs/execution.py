"""One execution of a run by a bulk worker: from the job's spec to its report, or why there is none. Knows no loop."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.exceptions import ConnectionError, TimeoutError
from rq import Retry
from rq.job import Job

from tokenmill.bulk.answers import Answer
from tokenmill.bulk.execute import execute
from tokenmill.bulk.jobs.keeper import LeaseKeeper
from tokenmill.bulk.jobs.limits import LimitBook, seconds_to_midnight
from tokenmill.bulk.jobs.places import PlaceError, local
from tokenmill.bulk.jobs.view import JobView
from tokenmill.bulk.partitioned import connect_queue
from tokenmill.bulk.report import RunReport
from tokenmill.bulk.rows import Fields
from tokenmill.bulk.run import RequestQueue
from tokenmill.bulk.spec import RunSpec
from tokenmill.client import Client
from tokenmill.wire.errors import TokenmillError, UnavailableError

ALWAYS = 1_000_000_000  # times that a run may be handed back: RQ wants a number


class RunStoppedError(TokenmillError):
    """Somebody asked for it; what was done is on disk."""


class RunGivenUpError(TokenmillError):
    """More rows failed than may; trying the same again at once would be no better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a bulk worker stands: its way to the queue, its folder, its tenants' limits."""

    redis_url: str
    files: Path | None
    limits: LimitBook


class GuardedQueue:
    """A RequestQueue whose answers come only while the lease is held: what they bring is written at once."""

    def __init__(self, queue: RequestQueue, check: Callable[[], None]) -> None:
        self._check = check
        self._queue = queue
        self.send = queue.send
        self.forget = queue.forget
        self.workers = queue.workers
        self.abandon = queue.abandon

    def wait(self, timeout_s: float) -> list[Answer]:
        """A worker that was frozen wakes here, with answers that another one has written meanwhile."""
        answers = self._queue.wait(timeout_s)
        self._check()
        return answers


class RunExecution:
    """Does one job; `stop` may be called from any thread."""

    def __init__(self, job: Job, keeper: LeaseKeeper, site: Site, *, is_leaving: Callable[[], bool]) -> None:
        self._job = job
        self._keeper = keeper
        self._site = site
        self._is_leaving = is_leaving
        self._is_stopped = False
        self._used_up: str | None = None
        self._uncounted = (0, 0)

    def stop(self) -> None:
        self._is_stopped = True

    def perform(self, value: dict[str, Any]) -> Any:
        """The report as JSON, or a Retry: not now. RunStoppedError, LeaseLostError, and what `execute` raises."""
        self._spec = local(RunSpec.from_json(value), self._site.files)
        self.publish({"error": None, "note": None})
        self._count(0, 0)
        if self._used_up is not None:
            return self._pause()
        view = JobView(self.publish, self._count)
        report = execute(self._spec, queue_factory=self._connect, view=view, should_stop=self._should_stop)
        self._check_lease()
        return self._conclude(report)

    def publish(self, told: Fields) -> None:
        """Into the job's meta, where RQ's dashboards look; progress that cannot be told now is told with the next."""
        self._job.meta.update(told)
        with contextlib.suppress(ConnectionError, TimeoutError):
            if Job.exists(self._job.id, connection=self._job.connection):  # else half a job would come back for ever
                self._job.save_meta()

    def _conclude(self, report: RunReport) -> Any:
        told = report.describe()
        self.publish({"report": told})
        if report.ending == "too_many_errors":
            raise RunGivenUpError(f"given up: {report.num_failed} rows failed, --max-errors {self._spec.max_errors}")
        if not report.is_stopped:
            return told
        if self._is_stop_wanted():
            why = "its deadline has come" if self._is_late() else "stopped"
            raise RunStoppedError(f"{why} after {report.num_done} rows")
        if self._used_up is not None:
            return self._pause()
        self.publish({"note": "its bulk worker was stopped; it waits for another one"})
        return Retry(max=ALWAYS, interval=0, enqueue_at_front=True)

    def _pause(self) -> Retry:
        self.publish({"note": f"tenant {self._spec.tenant or 'default'} has used {self._used_up}: goes on at 0:00 UTC"})
        return Retry(max=ALWAYS, interval=seconds_to_midnight())

    def _check_lease(self) -> None:
        self._keeper.check(is_leaving=self._is_leaving)

    def _should_stop(self) -> bool:
        self._check_lease()
        return self._is_stop_wanted() or self._is_leaving() or self._used_up is not None

    def _is_stop_wanted(self) -> bool:
        return self._is_stopped or self._keeper.is_stop_wanted or self._is_late()

    def _is_late(self) -> bool:
        return self._spec.deadline is not None and time.time() >= self._spec.deadline

    def _count(self, rows: int, tokens: int) -> None:
        """Against the tenant's limits; what cannot be counted now is counted with the next."""
        self._keeper.has_progress = self._keeper.has_progress or rows > 0
        rows, tokens = self._uncounted[0] + rows, self._uncounted[1] + tokens
        self._uncounted = (rows, tokens)
        with contextlib.suppress(UnavailableError):
            usage = self._site.limits.use(self._spec.tenant, rows=rows, tokens=tokens)
            self._uncounted = (0, 0)
            self._used_up = usage.reached(self._site.limits.limits_of(self._spec.tenant))

    def _connect(self, group: str) -> AbstractContextManager[RequestQueue]:
        self.publish({"group": group})
        self._look_at_queue()
        return self._connection(group)

    @contextlib.contextmanager
    def _connection(self, group: str) -> Iterator[RequestQueue]:
        queue = self._spec.queue
        with connect_queue(self._site.redis_url, queue.name, queue.partitions, group=group) as connection:
            yield GuardedQueue(connection, self._check_lease)
            # Handed back, its requests go on meanwhile: whoever is next finds their answers.
            if self._is_stop_wanted() or self._used_up is not None:
                connection.abandon()

    def _look_at_queue(self) -> None:
        queue = self._spec.queue
        with Client(self._site.redis_url, queue.name, queue.partitions) as client:
            workers = client.statistics().workers
        if not workers:
            self.publish({"note": f"no worker on queue {queue.name!r} yet: waiting for one (tokenmill worker)"})
        if not self._spec.recipe.is_raw and any(worker.info.get("has_chat_template") == "false" for worker in workers):
            raise PlaceError(f"the model on queue {queue.name!r} has no chat template: submit with --raw")
