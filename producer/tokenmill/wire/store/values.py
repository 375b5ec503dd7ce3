"""What goes into the transitions and what comes out. Plain frozen values; knows no script and no server."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tokenmill.wire.errors import DecodeError
from tokenmill.wire.keys import PRIORITY_LANES, RESULT_TTL_S, Lane
from tokenmill.wire.messages import DeltaEntry, JobState, RawEntry, Request, TerminalEntry, encode_plain

Durability = Literal["aof", "replica", "memory"]  # on the server's disk, in a replica's memory, in the server's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One request as `submit` stores it. `deadline_ms` counts from acceptance, `not_before_ms` from now."""

    request_id: str
    body: bytes
    digest: str
    lane: Lane
    result_ttl_s: int
    deadline_ms: int | None = None
    not_before_ms: int | None = None
    group: str | None = None

    @classmethod
    def build(cls, request_id: str, fields: Mapping[str, object], *, not_before_ms: int | None = None) -> "Submission":
        """From keyword arguments, as `Request.build` takes them; a plain request goes a short way."""
        plain = encode_plain(fields)
        if plain is None:
            request = Request.build(**fields)
            return cls.of(request_id, request, PRIORITY_LANES[request.priority], not_before_ms=not_before_ms)
        return cls(
            request_id=request_id,
            body=plain.body,
            digest=hashlib.sha256(plain.body).hexdigest(),
            lane=PRIORITY_LANES[plain.priority],
            result_ttl_s=RESULT_TTL_S,
            not_before_ms=not_before_ms,
            group=plain.group,
        )

    @classmethod
    def of(cls, request_id: str, request: Request, lane: Lane, *, not_before_ms: int | None = None) -> "Submission":
        return cls(
            request_id=request_id,
            body=request.encode(),
            digest=request.digest,
            lane=lane,
            result_ttl_s=request.result_ttl_s,
            deadline_ms=None if request.deadline_s is None else max(1, round(request.deadline_s * 1000)),
            not_before_ms=not_before_ms,
            group=request.group,
        )


@dataclass(frozen=True, slots=True)
class SubmitReply:
    """`state`: of the job under this id now. `retry_after_ms` when busy."""

    status: Literal["accepted", "dup", "conflict", "busy"]
    state: JobState | None = None
    retry_after_ms: int | None = None


class Delivery(NamedTuple):
    """One entry as a lane handed it out."""

    lane: Lane
    entry_id: str
    fields: Mapping[bytes, bytes]

    @property
    def is_raw(self) -> bool:
        """It carries its payload itself; a submitted one only names its job."""
        return not self.fields.keys() <= {b"id", b"group"} or b"id" not in self.fields

    @property
    def request_id(self) -> str:
        """Never raises: a broken raw entry answers under the id its producer waits for, or `<lane>-<entry id>`."""
        if self.is_raw:
            return RawEntry.identify(self.lane, self.entry_id, self.fields)
        return self.fields[b"id"].decode("utf-8", "backslashreplace")

    def claim(self) -> "Claim":
        """What `begin` wants to know of it. DecodeError or InvalidRequestError: bury it with that reason."""
        if self.is_raw:
            request_id, request = RawEntry.parse(self.lane, self.entry_id, self.fields)
            raw = Submission.of(request_id, request, self.lane)
            return Claim(self.lane, self.entry_id, request_id, raw=raw, group=request.group)
        return Claim(self.lane, self.entry_id, self.request_id, group=_group(self.fields.get(b"group", b"")))


def _group(name: bytes) -> str | None:
    try:
        return name.decode() or None
    except UnicodeDecodeError as error:
        raise DecodeError(f"group is not UTF-8: {error.reason} at byte {error.start}", param="group") from None


class Claim(NamedTuple):
    """An entry that a worker has read. `raw`: its job is made from this when there is none.

    `group`: as the entry or the raw request says; its keys must be declared. Use `Delivery.claim()`.
    """

    lane: Lane
    entry_id: str
    request_id: str
    raw: Submission | None = None
    group: str | None = None


class BeginReply(NamedTuple):
    """What became of a claim. Only `begun` carries the rest; every other status is settled already: acked, and where
    a final word was due it is written.

    `published` tokens stand in the result stream in `epoch`; with another model's tokens the job was reset by begin
    itself, and `published` is 0. Times are server ms; `begun_ms` is now, `first_token_ms` an earlier worker's.
    """

    status: Literal["begun", "skipped", "expired", "cancelled", "conflict"]
    request_id: str
    fence: int = 0
    body: bytes = b""
    published: int = 0
    epoch: int = 0
    failed: int = 0
    crashed: int = 0
    fingerprint: str = ""
    accepted_ms: int = 0
    begun_ms: int = 0
    deadline_ms: int | None = None
    first_token_ms: int | None = None
    result_ttl_s: int = 0
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Renewal:
    """`is_fenced`: the lease is gone, drop everything and register anew under a new name."""

    is_fenced: bool
    cancelled: tuple[str, ...] = ()


class Publication(NamedTuple):
    """Deltas of one running job, in order."""

    request_id: str
    fence: int
    epoch: int
    entries: tuple[DeltaEntry, ...]


class PublishReply(NamedTuple):
    """`gap`: the first entry does not start at `published`; nothing was written, go on from there."""

    status: Literal["ok", "fenced", "gap"]
    published: int = 0
    is_cancelled: bool = False


class Finish(NamedTuple):
    """The last deltas and the terminal entry of one running job. `group` as BeginReply gave it.

    `num_tokens`: tokens that must be told when the terminal entry is written, else the answer is `gap`; None takes
    the end of the last delta or, without deltas, whatever is there (a request refused before it ran).
    """

    request_id: str
    fence: int
    epoch: int
    terminal: TerminalEntry
    state: Literal["done", "failed", "cancelled", "expired", "dead"]
    deltas: tuple[DeltaEntry, ...] = ()
    group: str | None = None
    num_tokens: int | None = None


class FinishReply(NamedTuple):
    """`gap`: tokens before these deltas are missing; nothing was written, go on from `published`."""

    status: Literal["ok", "fenced", "gap"]
    published: int = 0


RetryReply = Literal["ok", "exhausted", "fenced"]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """What the quarantine lane has for a worker. `num_left`: entries there, this one included, and retries to come."""

    delivery: Delivery | None
    num_left: int


@dataclass(frozen=True, slots=True)
class Held:
    """A job that a worker hands back, on its way out or because the engine failed on it."""

    request_id: str
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInfo:
    """The job's hash as far as a reader cares; None where there is no job."""

    state: JobState
    published: int
    accepted_ms: int
    worker: str
    is_cancelled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneStatistics:
    """`backlog` waits unread, `in_flight` is held by workers. `oldest_age_s` of the oldest entry, None when empty."""

    backlog: int
    in_flight: int
    oldest_age_s: float | None

    @classmethod
    def sum(cls, parts: Sequence["LaneStatistics"]) -> "LaneStatistics":
        return cls(
            backlog=sum(part.backlog for part in parts),
            in_flight=sum(part.in_flight for part in parts),
            oldest_age_s=max((part.oldest_age_s for part in parts if part.oldest_age_s is not None), default=None),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatistics:
    """One live worker: seconds left of its lease, and what it tells about itself."""

    name: str
    lease_left_s: float
    info: dict[str, str]

    @property
    def process(self) -> str:
        """One for all the leases that a worker has, one in each partition."""
        return self.info.get("process", self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatistics:
    """One immutable look at a queue: the source of `tokenmill queue`, of the dashboard and of tests."""

    queue: str
    lanes: dict[str, LaneStatistics]
    workers: tuple[WorkerStatistics, ...] = ()
    dead_letters: int = 0
    scheduled: int = 0
    partitions: int = 1

    @classmethod
    def sum(cls, parts: Sequence["QueueStatistics"]) -> "QueueStatistics":
        """Of all partitions. A worker counts once: by the lease that ends first."""
        if len(parts) == 1:
            return parts[0]
        workers: dict[str, WorkerStatistics] = {}
        for worker in (worker for part in parts for worker in part.workers):
            known = workers.setdefault(worker.process, worker)
            workers[worker.process] = min(known, worker, key=lambda one: one.lease_left_s)
        return cls(
            queue=parts[0].queue,
            lanes={lane: LaneStatistics.sum([part.lanes[lane] for part in parts]) for lane in parts[0].lanes},
            workers=tuple(workers.values()),
            dead_letters=sum(part.dead_letters for part in parts),
            scheduled=sum(part.scheduled for part in parts),
            partitions=len(parts),
        )

    @property
    def depth(self) -> int:
        """Requests that wait for a worker."""
        return sum(lane.backlog for lane in self.lanes.values())

    @property
    def in_flight(self) -> int:
        """Requests that a worker holds."""
        return sum(lane.in_flight for lane in self.lanes.values())

    @property
    def oldest_age_s(self) -> float | None:
        """Age of the oldest unfinished request, waiting or held."""
        return max((lane.oldest_age_s for lane in self.lanes.values() if lane.oldest_age_s is not None), default=None)
