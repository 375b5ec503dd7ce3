"""All runs of an RQ server: handed in, looked at, stopped, resumed. Knows no rows and executes nothing."""

from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from rq import Queue, Retry
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.job import Job, JobStatus
from rq.rate_limit import RateLimit
from rq.serializers import JSONSerializer

from tokenmill.bulk.jobs.limits import NOBODY, LimitBook
from tokenmill.bulk.jobs.places import run_id_of
from tokenmill.bulk.jobs.task import TASK
from tokenmill.bulk.leftovers import cancel_leftovers
from tokenmill.bulk.rows import Fields
from tokenmill.bulk.spec import RunSpec, SpecError
from tokenmill.wire.errors import InvalidRequestError, TokenmillError
from tokenmill.wire.keys import RUN_TTL_S
from tokenmill.wire.store import RunRecord, RunTransitions, Store, connect, is_spread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis import Redis

RQ_QUEUE = "tokenmill-bulk"
RETRY_INTERVALS_S = [10, 30, 60]  # after a failure that may pass by itself: a server away, a file still locked
NEVER = -1  # no time limit: a run takes as long as it takes

State = Literal["scheduled", "waiting", "queued", "running", "lost", "done", "failed", "stopped"]
_STATES: dict[JobStatus, State] = {
    JobStatus.SCHEDULED: "scheduled",
    JobStatus.RATE_LIMITED: "waiting",
    JobStatus.STARTED: "running",
    JobStatus.FINISHED: "done",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "stopped",
    JobStatus.CANCELED: "stopped",
}
FINAL: frozenset[State] = frozenset({"done", "failed", "stopped"})


class RunNotFoundError(TokenmillError):
    """No run of this name here, or it ended more than a month ago."""


class RunConflictError(InvalidRequestError):
    """The run's state, or another run, does not allow this."""


class Submitted(NamedTuple):
    """`is_new` False: this very run was on its way already."""

    run_id: str
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run as it stands. `progress`: the last numbers its execution told. `due`: when a scheduled one is queued.

    lost: its bulk worker died; another one takes it within the lease.
    """

    run_id: str
    state: State
    is_stopping: bool
    paths: list[str]
    out: str
    tenant: str
    worker: str | None
    error: str | None
    note: str | None
    submitted: str | None
    ended: str | None
    due: str | None
    progress: Fields = field(default_factory=dict)
    report: Fields | None = None

    @property
    def is_final(self) -> bool:
        return self.state in FINAL

    @property
    def num_failed(self) -> int:
        """Rows; of the last execution."""
        number = (self.report or self.progress).get("num_failed")
        return number if isinstance(number, int) else 0

    def describe(self) -> Fields:
        return asdict(self)


class RunBoard:
    """A context manager; `url` is RQ's server: any but a cluster."""

    def __init__(self, url: str) -> None:
        self.store = connect_store(url)
        self.queue = rq_queue(self.store.client)
        self.limits = LimitBook(self.store)
        self._runs = RunTransitions()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def submit(self, spec: RunSpec, *, at: datetime | None = None) -> Submitted:
        """Queues a run, or plans it for `at`. RunConflictError: another run is writing that file."""
        run_id = run_id_of(spec.out)
        job = self._find_job(run_id)
        if job is not None and not _is_final(job):
            return self._submitted_before(job, spec)
        if job is not None:
            job.delete()
        self._queue_new(run_id, spec, at)
        return Submitted(run_id, is_new=True)

    def status(self, run_id: str) -> RunStatus:
        return self._status_of(self._job(run_id))

    def all_runs(self) -> list[RunStatus]:
        """The newest first."""
        return self.latest_runs(None)

    def latest_runs(self, limit: int | None) -> list[RunStatus]:
        """The newest `limit` of them; the others are only counted past."""
        jobs = Job.fetch_many(self._run_ids(), connection=self.queue.connection, serializer=self.queue.serializer)
        ours = [job for job in jobs if job is not None and job.func_name == TASK]
        ours.sort(key=lambda job: _time(job.created_at) or "", reverse=True)
        return [self._status_of(job) for job in ours[:limit]]

    def stop(self, run_id: str) -> bool:
        """What is in flight is cancelled, finished rows stay. False: it is over already."""
        job = self._job(run_id)
        if _is_final(job):
            return False
        self.store.send(self._runs.want_stop(run_id))
        if job.get_status() != JobStatus.STARTED:
            try:
                job.cancel()
            except InvalidJobOperation:
                return False
        return True

    def cancel_leftovers(self, run_id: str, url: str) -> int:
        """Cancels what a run has on its queue at `url`, whoever sent it; how many requests. UnavailableError."""
        return cancel_leftovers_of(self._job(run_id), url)

    def resume(self, run_id: str, *, only_failed: bool = False) -> None:
        """Queues a run that ended: it does what is missing, or only what failed and is not bad."""
        job = self._job(run_id)
        if not _is_final(job):
            raise RunConflictError(f"run {run_id} is {self._status_of(job).state}: nothing to resume")
        spec = replace(_spec_of(job), only_failed=only_failed)
        job.delete()
        self._queue_new(run_id, spec, None)

    def id_of(self, name: str, files: Path | None = None) -> str:
        """A run by its id or by its output file. RunNotFoundError."""
        candidates = [name, run_id_of(str(Path(name).absolute()))]
        if files is not None and Path(name).absolute().is_relative_to(files.absolute()):
            candidates.append(run_id_of(str(Path(name).absolute().relative_to(files.absolute()))))
        for run_id in candidates:
            if self._find_job(run_id) is not None:
                return run_id
        raise RunNotFoundError(f"no run {name!r} here: `tokenmill bulk status` lists those that there are")

    # --- jobs ---

    def _submitted_before(self, job: Job, spec: RunSpec) -> Submitted:
        if _spec_of(job) == spec:
            return Submitted(job.id, is_new=False)
        raise RunConflictError(
            f"{spec.out} is being written by run {job.id} with other settings: `tokenmill bulk stop {job.id}` first, "
            "or choose another --out"
        )

    def _queue_new(self, run_id: str, spec: RunSpec, at: datetime | None) -> None:
        self.store.send(self._runs.forget_stop(run_id))
        job = self._make_job(run_id, spec)
        try:
            if at is None:
                self.queue.enqueue_job(job, unique=not job.has_rate_limit)
            else:
                self.queue.schedule_job(job, at, unique=True)
        except DuplicateJobError:
            self._submitted_before(self._job(run_id), spec)  # somebody was faster by a moment

    def _make_job(self, run_id: str, spec: RunSpec) -> Job:
        """For ever running, kept for a month, tried again when what failed may pass."""
        limit = self.limits.limits_of(spec.tenant).runs
        rate = None if limit is None else RateLimit(f"{RQ_QUEUE}:{spec.tenant or NOBODY}", limit)
        return self.queue.create_job(
            TASK,
            args=(spec.to_json(),),
            job_id=run_id,
            timeout=NEVER,
            result_ttl=RUN_TTL_S,
            failure_ttl=RUN_TTL_S,
            retry=Retry(max=len(RETRY_INTERVALS_S), interval=RETRY_INTERVALS_S),
            rate_limit=rate,
            description=f"tokenmill bulk: {', '.join(spec.input.paths)} -> {spec.out}",
        )

    def _job(self, run_id: str) -> Job:
        job = self._find_job(run_id)
        if job is None:
            raise RunNotFoundError(f"no run {run_id!r} here: `tokenmill bulk status` lists those that there are")
        return job

    def _find_job(self, run_id: str) -> Job | None:
        try:
            return Job.fetch(run_id, connection=self.queue.connection, serializer=self.queue.serializer)
        except (NoSuchJobError, ValueError):  # ValueError: a name that RQ allows no job to have
            return None

    def _run_ids(self) -> list[str]:
        queue = self.queue
        known: Iterable[str] = (
            *queue.get_job_ids(),
            *queue.intermediate_queue.get_job_ids(),
            *queue.started_job_registry.get_job_ids(cleanup=False),
            *queue.scheduled_job_registry.get_job_ids(cleanup=False),
            *queue.finished_job_registry.get_job_ids(cleanup=False),
            *queue.failed_job_registry.get_job_ids(cleanup=False),
            *queue.canceled_job_registry.get_job_ids(cleanup=False),
            *self._waiting_ids(),
        )
        return list(dict.fromkeys(known))

    def _waiting_ids(self) -> list[str]:
        from rq.rate_limit import RateLimitRegistry

        ours = [one for one in RateLimitRegistry.all(self.queue.connection) if one.key.startswith(f"{RQ_QUEUE}:")]
        return [run_id for registry in ours for run_id in registry.get_rate_limited_job_ids()]

    def _status_of(self, job: Job) -> RunStatus:
        spec: dict[str, Any] = job.args[0]
        record = self.store.run(self._runs.inspect(job.id))
        status = job.get_status(refresh=False)
        told = dict(job.meta)
        return RunStatus(
            run_id=job.id,
            state=_state(status, record),
            is_stopping=record.is_stop_wanted and status == JobStatus.STARTED,
            paths=list(spec["input"]["paths"]),
            out=spec["out"],
            tenant=spec.get("tenant") or NOBODY,
            worker=job.worker_name if status == JobStatus.STARTED else None,
            error=told.pop("error", None),
            note=told.pop("note", None),
            submitted=_time(job.created_at),
            ended=_time(job.ended_at) if status in _ENDED else None,
            due=_time(self._due(job)) if status == JobStatus.SCHEDULED else None,
            report=told.pop("report", None),
            progress=told,
        )

    def _due(self, job: Job) -> datetime | None:
        try:
            due: datetime = self.queue.scheduled_job_registry.get_scheduled_time(job)
        except NoSuchJobError:
            return None
        return due


_ENDED = (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED)


def cancel_leftovers_of(job: Job, url: str) -> int:
    """Nothing while no execution of it has reached the queue."""
    group = job.meta.get("group")
    return cancel_leftovers(url, _spec_of(job).queue, group) if isinstance(group, str) else 0


def connect_store(url: str, *, block_s: float = 0.0) -> Store:
    """InvalidRequestError: a cluster, which RQ cannot use."""
    if is_spread(url):
        raise InvalidRequestError("RQ cannot use a cluster: name a single server for it with --rq-redis")
    return Store(connect(url, key="rq", block_s=block_s))


def rq_queue(client: "Redis") -> Queue:
    return Queue(RQ_QUEUE, connection=client, serializer=JSONSerializer, default_timeout=NEVER)


def _state(status: JobStatus, record: RunRecord) -> State:
    if status == JobStatus.STARTED and (record.lease_left_s is None or record.lease_left_s < 0):
        return "lost"
    return _STATES.get(status, "queued")


def _is_final(job: Job) -> bool:
    return job.get_status() in _ENDED


def _spec_of(job: Job) -> RunSpec:
    try:
        return RunSpec.from_json(job.args[0])
    except (SpecError, IndexError) as error:
        raise RunConflictError(f"run {job.id} was submitted by another version of tokenmill: {error}") from error


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat(timespec="seconds")
