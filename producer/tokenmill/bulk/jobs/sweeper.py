"""What RQ leaves lying: runs of dead workers, jobs taken by a worker that died at once, jobs whose time has come.

A thread of every bulk worker. Whatever it does may be done by two of them at once, and by one that dies half way.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Self

from redis.exceptions import RedisError
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus
from rq.rate_limit import release_slot
from rq.scheduler import RQScheduler

from tokenmill.wire.errors import TokenmillError
from tokenmill.wire.store import Reclaimed, RunTransitions, Store

MAX_RETAKEN = 5  # deaths of its workers without one row finished in between, after which the run itself is suspect
MAX_INTERVAL_S = 3.0

log = logging.getLogger("rq.worker")


class Sweeper:
    """A context manager; `sweep` is one turn of it."""

    def __init__(self, queue: Queue, store: Store, runs: RunTransitions, cancel: Callable[[Job], object]) -> None:
        """`cancel` is called for a run that shall stop and whose worker is dead: with its requests."""
        self._queue = queue
        self._store = store
        self._runs = runs
        self._cancel = cancel
        self._lease_s = runs.ttl_ms / 1000
        self._interval_s = min(MAX_INTERVAL_S, self._lease_s / 5)
        self._scheduler = RQScheduler(
            [queue], connection=queue.connection, serializer=queue.serializer, logging_level=logging.WARNING
        )
        self._strays: dict[str, float] = {}
        self._trusted_from_s = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(self._interval_s):
            try:
                self.sweep()
            except (TokenmillError, RedisError) as error:
                # After an outage every lease looks dead at once: their owners get a lease's time to renew them.
                self._trusted_from_s = time.monotonic() + self._lease_s
                log.warning("sweeper: %s", error)

    def sweep(self) -> None:
        self._queue_due_jobs()
        if time.monotonic() >= self._trusted_from_s:
            for run_id in self._store.run(self._runs.find_lapsed()):
                self._retake(run_id)
        self._return_strays()

    def _queue_due_jobs(self) -> None:
        """RQ's scheduler keeps its lock for a minute; given back each time, a killed worker takes none with it."""
        if self._scheduler.acquire_locks():
            try:
                self._scheduler.enqueue_scheduled_jobs()
            finally:
                self._scheduler.release_locks()

    def _retake(self, run_id: str) -> None:
        taken = self._store.run(self._runs.reclaim(run_id))
        if taken is None:
            return
        job = self._fetch(run_id)
        if job is not None and _is_abandoned(job):
            self._settle(job, taken)
        self._store.run(self._runs.release(run_id, "", taken.fence))

    def _settle(self, job: Job, taken: Reclaimed) -> None:
        if taken.is_stop_wanted:
            self._end(job, JobStatus.STOPPED, "stopped; its worker had died")
            self._cancel(job)
        elif taken.num_retaken > MAX_RETAKEN:
            self._end(job, JobStatus.FAILED, f"its workers died {taken.num_retaken} times without finishing a row")
        else:
            log.warning("run %s: its worker is gone, it is queued again", job.id)
            self._queue_again(job)

    def _queue_again(self, job: Job) -> None:
        """It keeps its place among its tenant's runs, and is first in the queue."""
        with self._queue.connection.pipeline() as pipeline:
            self._forget_executions(job)
            self._queue.failed_job_registry.remove(job, pipeline=pipeline)
            job.set_status(JobStatus.QUEUED, pipeline=pipeline)
            self._queue.push_job_id(job.id, pipeline=pipeline, at_front=True)
            pipeline.execute()

    def _end(self, job: Job, status: JobStatus, reason: str) -> None:
        job.meta["error"] = None if status == JobStatus.STOPPED else reason
        job.save_meta()
        with self._queue.connection.pipeline() as pipeline:
            self._forget_executions(job)
            job.set_status(status, pipeline=pipeline)
            ttl = job.failure_ttl or 0
            self._queue.failed_job_registry.add(job, ttl=ttl, exc_string=reason, pipeline=pipeline)
            pipeline.execute()
        release_slot(job)

    def _forget_executions(self, job: Job) -> None:
        """Of the dead worker: RQ would call the job abandoned for their sake."""
        registry = self._queue.started_job_registry
        for run_id, execution_id in registry.get_job_and_execution_ids(cleanup=False):
            if run_id == job.id:
                self._queue.connection.zrem(registry.key, f"{run_id}:{execution_id}")
        self._queue.connection.delete(job.execution_registry.key)

    def _return_strays(self) -> None:
        """Jobs that a worker took from the queue and never began: it died in between, or lost the server's reply."""
        now_s = time.monotonic()
        present = self._queue.intermediate_queue.get_job_ids()
        self._strays = {run_id: self._strays.get(run_id, now_s) for run_id in present}
        for run_id, seen_s in self._strays.items():
            if now_s - seen_s > self._lease_s and not self._is_held(run_id):
                self._return(run_id)

    def _is_held(self, run_id: str) -> bool:
        return bool(self._store.run(self._runs.inspect(run_id)).owner)

    def _return(self, run_id: str) -> None:
        with self._queue.connection.pipeline() as pipeline:
            if self._fetch(run_id) is not None:
                self._queue.push_job_id(run_id, pipeline=pipeline, at_front=True)
            pipeline.lrem(self._queue.intermediate_queue_key, 0, run_id)
            pipeline.execute()

    def _fetch(self, run_id: str) -> Job | None:
        try:
            return Job.fetch(run_id, connection=self._queue.connection, serializer=self._queue.serializer)
        except NoSuchJobError:
            return None


def _is_abandoned(job: Job) -> bool:
    """Its worker died: RQ still calls it started, or has given it up by itself meanwhile."""
    status = job.get_status(refresh=False)
    return status == JobStatus.STARTED or (status == JobStatus.FAILED and "AbandonedJobError" in (job.exc_info or ""))
