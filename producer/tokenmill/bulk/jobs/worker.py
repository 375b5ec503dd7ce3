"""`tokenmill bulk worker`: an RQ worker that executes runs, each under its lease. Knows no rows and no command line.

It is RQ's SimpleWorker: a run is executed in this very process. A forked work horse would outlive a parent that is
killed and go on writing; it could be stopped by SIGKILL alone; and a fork next to our threads is unsafe.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from typing import Any

from redis.exceptions import ConnectionError, TimeoutError
from rq import Queue
from rq.job import Job, JobStatus
from rq.worker import SimpleWorker

from tokenmill.bulk.jobs.execution import RunExecution, RunGivenUpError, RunStoppedError, Site
from tokenmill.bulk.jobs.keeper import LeaseKeeper, LeaseLostError
from tokenmill.bulk.jobs.places import PlaceError
from tokenmill.bulk.jobs.task import current_execution
from tokenmill.bulk.output import OutputError, OutputLockedError
from tokenmill.bulk.prompts import TemplateError
from tokenmill.bulk.rows import InputError
from tokenmill.bulk.spec import SpecError
from tokenmill.wire.errors import TokenmillError
from tokenmill.wire.store import RunTransitions, Store

WORKER_TTL_S = 60  # RQ forgets a worker that is silent for so long; bounds how long one waits for a job in one call
MAINTENANCE_S = 60  # RQ's own cleaning: jobs that expired, slots of tenants that leaked
HEARTBEAT_S = 20.0  # while a run goes on; RQ calls it abandoned after some minutes without
PAUSE_S = 0.2  # before a job whose lease is still held is looked at again

# A second try mends none of these. OSError: a file that is not there, a full disk; `bulk resume` goes on after.
FINAL_ERRORS = (OutputError, InputError, TemplateError, SpecError, PlaceError, RunGivenUpError, OSError)


class BulkWorker(SimpleWorker):
    """Takes runs from one RQ queue until SIGTERM, which hands the run in flight back."""

    def __init__(self, queue: Queue, store: Store, runs: RunTransitions, site: Site) -> None:
        name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        super().__init__(
            [queue],
            name=name,
            connection=queue.connection,
            serializer=queue.serializer,
            worker_ttl=WORKER_TTL_S,
            maintenance_interval=MAINTENANCE_S,
        )
        self.is_leaving = threading.Event()
        self._store = store
        self._runs = runs
        self._site = site
        self._running: RunExecution | None = None
        self._failure: BaseException | None = None
        self._beaten_s = 0.0

    # --- what RQ calls ---

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Under the run's lease; a job that is executed elsewhere is left alone."""
        if job.get_status(refresh=True) != JobStatus.QUEUED:
            queue.intermediate_queue.remove(job.id)  # a second entry of a job that somebody has already
            return
        keeper = LeaseKeeper.acquire(self._store, self._runs, job.id)
        if keeper is None:
            self._put_back(job, queue)
            return
        self._failure = None
        self._running = RunExecution(job, keeper, self._site, is_leaving=self.is_leaving.is_set)
        keeper.on_beat(lambda: self._beat(job))
        token = current_execution.set(self._running)
        try:
            with keeper:
                super().execute_job(job, queue)
        finally:
            current_execution.reset(token)
            self._running = None

    def handle_warm_shutdown_request(self) -> None:
        super().handle_warm_shutdown_request()  # type: ignore[no-untyped-call]  # rq has no types here
        self.is_leaving.set()

    def kill_horse(self, *_: object) -> None:
        """RQ's stop command: there is no horse to kill, the run is asked to stop."""
        if self._running is not None:
            self._running.stop()

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Called before `handle_job_failure`: sees to it that RQ calls the failure by its right name."""
        error = self._failure = exc_info[1]
        if isinstance(error, RunStoppedError):
            self._stopped_job_id = job.id  # what RQ's own stop command sets: STOPPED, not FAILED
        if isinstance(error, FINAL_ERRORS) and not isinstance(error, OutputLockedError):
            job.retries_left = 0
        if isinstance(error, (TokenmillError, *FINAL_ERRORS)):
            self.log.warning("Worker %s: run %s: %s", self.name, job.id, reason_of(error))
        else:
            super().handle_exception(job, *exc_info)

    def handle_job_failure(self, job: Job, queue: Queue, *args: Any, **kwargs: Any) -> None:
        error, self._failure = self._failure, None
        if isinstance(error, LeaseLostError):  # the job is another worker's now, so is what RQ says of it
            with self.connection.pipeline() as pipeline:
                self.cleanup_execution(job, pipeline=pipeline, execution=kwargs.get("execution"))
                pipeline.execute()
            return
        if error is not None:
            reason = f"{socket.gethostname()}: {reason_of(error)}"
            job.meta["error"] = None if isinstance(error, RunStoppedError) else reason
            job.save_meta()
            if isinstance(error, (TokenmillError, *FINAL_ERRORS)):
                kwargs["exc_string"] = reason
        super().handle_job_failure(job, queue, *args, **kwargs)

    # --- ours ---

    def _put_back(self, job: Job, queue: Queue) -> None:
        """Its last execution is just giving the lease back, or its worker died: the lease decides."""
        with self.connection.pipeline() as pipeline:
            queue.push_job_id(job.id, pipeline=pipeline)
            pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
            pipeline.execute()
        self.is_leaving.wait(PAUSE_S)

    def _beat(self, job: Job) -> None:
        """By the keeper's thread, after a renewal."""
        if time.monotonic() - self._beaten_s < HEARTBEAT_S or (execution := self.execution) is None:
            return
        self._beaten_s = time.monotonic()
        with contextlib.suppress(ConnectionError, TimeoutError):
            self.maintain_heartbeats(job, execution)


def reason_of(error: BaseException) -> str:
    """In one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
