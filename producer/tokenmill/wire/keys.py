"""Every key name and every lifetime, with unit and reason. Pure functions of (queue, partition); knows no Redis.

All keys of a partition share the hash tag `{<queue>.<partition>}`: one slot, so one script can touch them all.
"""

import binascii
from dataclasses import dataclass, field
from enum import StrEnum

PREFIX = "tm:"
GROUP = "w"  # the one consumer group on every lane

RESULT_TTL_S = 86_400  # a final job and its result stream: a day, so that a reader may come back tomorrow morning
LEASE_TTL_MS = 15_000  # a worker silent for this long is taken over; renewed every third of it
WORKER_INFO_TTL_MS = 3 * LEASE_TTL_MS  # outlives the lease, so that who reaps can still say what it reaped
WATCH_TTL_MS = 10_000  # somebody looks at the batches; said again while they do, so that a closed page costs nothing
PICTURE_TTL_MS = (
    5_000  # a worker's last steps; drawn several times a second, so one this old is of a worker that is gone
)
CANCEL_TTL_S = 3_600  # cancel requests for one worker; outlives any lease, dies with a worker that never read it
GROUP_TTL_S = 7 * 86_400  # counts and fan-in of a bulk run: a week, a run may be looked at after a holiday
RUN_LEASE_TTL_MS = 15_000  # a bulk run whose worker is silent for this long is taken by another one
RUN_TTL_S = 30 * 86_400  # what is known of a bulk run, from its last sign of life: a month, it may be resumed late
USAGE_TTL_S = 2 * 86_400  # a tenant's rows and tokens of one day; the second day is for who looks at yesterday's
NOTE_TTL_S = 7 * 86_400  # a front door's note, besides the life of the result: a request may wait for so long
GATE_USE_TTL_S = 2 * 86_400  # what an API key has used: outlives the day that is counted
BELL_TTL_MS = 60_000  # a listener's bell: it needs to be heard once, by a read that lasts seconds
DEAD_MAXLEN = 10_000  # dead letters kept; entries, approximate
MAX_DEPTH = 1_000_000  # entries on one lane before submit answers busy
MAX_BODY_BYTES = 1 << 20  # a larger body is refused
MAX_CRASHES = 2  # owners that die under one request without a token of progress before it has to run alone
MAX_ALONE_CRASHES = 2  # ... and that die under it alone, at the same token, before it is dead: once may be chance
MAX_RETRIES = 3  # of a request on which the engine fails
RETRY_BACKOFF_MS = (1_000, 4_000, 16_000)  # one for each: a device that is short of memory needs time, not haste
BURST_HORIZON_MS = 30_000  # a worker that ends with its queue waits for what is due by then: for every retry
DURABLE_TIMEOUT_MS = 2_000  # an append-only file is synced once a second; the other second is for a slow disk
MAX_PARTITIONS = 256  # of a queue: each costs a worker three connections and three threads
MAX_JOBS_PER_CALL = 100  # jobs one script call may touch: bounds how long the server is blocked


class Lane(StrEnum):
    """The lanes of a partition in the order workers read them; the quarantine lane is read apart."""

    RESUME = "0"  # drained, reaped and retried jobs: they were first once already
    HIGH = "1"
    NORMAL = "2"
    BULK = "3"
    QUARANTINE = "q"


PRIORITY_LANES = {"high": Lane.HIGH, "normal": Lane.NORMAL, "bulk": Lane.BULK}
FETCH_ORDER = (Lane.RESUME, Lane.HIGH, Lane.NORMAL, Lane.BULK)


def partition_of(request_id: str, partitions: int) -> int:
    """crc16 as Redis Cluster has it (CCITT, XMODEM), so that any language's cluster client has it at hand."""
    return binascii.crc_hqx(request_id.encode(), 0) % partitions


def all_keys(queue: str, partitions: int) -> tuple["Keys", ...]:
    """Of every partition of a queue."""
    return tuple(Keys(queue, partition, partitions) for partition in range(partitions))


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names of one partition of one queue, which has `partitions` of them in all."""

    queue: str = "default"
    partition: int = 0
    partitions: int = 1
    tag: str = field(init=False, repr=False, compare=False)  # what all the names begin with

    def __post_init__(self) -> None:
        object.__setattr__(self, "tag", f"{PREFIX}{{{self.queue}.{self.partition}}}:")

    def owns(self, request_id: str) -> bool:
        """Does the request belong here? (One without an id of its producer's does wherever it was added.)"""
        return self.partitions == 1 or partition_of(request_id, self.partitions) == self.partition

    def lane(self, lane: Lane) -> str:
        """Stream: the backlog, and through its group the ledger of who holds what."""
        return f"{self.tag}in:{lane.value}"

    def job(self, request_id: str) -> str:
        """Hash: the truth about one request."""
        return f"{self.tag}j:{request_id}"

    def result(self, request_id: str) -> str:
        """Stream: deltas, then one terminal entry."""
        return f"{self.tag}r:{request_id}"

    def of_request(self, request_id: str, group: str | None) -> list[str]:
        """Job, result, group and its fan-in; without a group the job's own key stands in, and is not used as one."""
        job, result = f"{self.tag}j:{request_id}", f"{self.tag}r:{request_id}"
        return [job, result, job, job] if not group else [job, result, self.group(group), self.group_done(group)]

    def note(self, request_id: str) -> str:
        """Hash: what a front door was asked beside the request; NOTE_TTL_S and the result's own time."""
        return f"{self.tag}n:{request_id}"

    def bell(self, listener: str) -> str:
        """Stream: wakes one asyncio client from its read of many results; BELL_TTL_MS."""
        return f"{self.tag}b:{listener}"

    @property
    def workers(self) -> str:
        """Zset: worker -> end of its lease, server ms."""
        return f"{self.tag}wk"

    @property
    def dead_workers(self) -> str:
        """Zset: workers being reaped."""
        return f"{self.tag}wk:dead"

    def worker_info(self, worker: str) -> str:
        """Hash: model, limits, fingerprint, statistics; WORKER_INFO_TTL_MS."""
        return f"{self.tag}wi:{worker}"

    @property
    def watch(self) -> str:
        """String, in partition 0 alone: there while somebody looks at the batches; WATCH_TTL_MS."""
        return f"{self.tag}watch"

    def picture(self, worker: str) -> str:
        """String, in partition 0 alone: the worker's last steps, JSON; PICTURE_TTL_MS."""
        return f"{self.tag}pic:{worker}"

    def cancels(self, worker: str) -> str:
        """Set: ids that this worker shall drop; CANCEL_TTL_S."""
        return f"{self.tag}cx:{worker}"

    @property
    def deadlines(self) -> str:
        """Zset: id -> deadline of an unfinished job, server ms."""
        return f"{self.tag}dl"

    @property
    def not_before(self) -> str:
        """Zset: id -> time before which it is not queued, server ms."""
        return f"{self.tag}at"

    def group(self, group: str) -> str:
        """Hash: counts of a group of requests; GROUP_TTL_S."""
        return f"{self.tag}g:{group}"

    def group_done(self, group: str) -> str:
        """Stream: one entry per finished request of the group; GROUP_TTL_S."""
        return f"{self.tag}gd:{group}"

    @property
    def count(self) -> str:
        """Hash, in partition 0 alone: how many partitions the queue has; for ever, as the lanes."""
        return f"{self.tag}p"

    @property
    def mark(self) -> str:
        """Hash: written behind what shall be durable, so that there is a write to wait for; DURABLE_TIMEOUT_MS."""
        return f"{self.tag}mark"

    @property
    def dead(self) -> str:
        """Stream: dead letters, about DEAD_MAXLEN of them."""
        return f"{self.tag}dead"


@dataclass(frozen=True, slots=True)
class RunKeys:
    """Key names of the bulk runs that RQ carries: on RQ's server and beside its keys, for all queues together."""

    name: str = "bulk"

    @property
    def tag(self) -> str:
        return f"{PREFIX}{{{self.name}}}:"

    @property
    def leases(self) -> str:
        """Zset: run -> end of its lease, server ms; RUN_TTL_S."""
        return f"{self.tag}leases"

    def run(self, run_id: str) -> str:
        """Hash: who executes a run, its fence, whether it shall stop; RUN_TTL_S."""
        return f"{self.tag}run:{run_id}"

    @property
    def limits(self) -> str:
        """Hash: tenant -> what it may use, JSON; for ever, an operator wrote it."""
        return f"{self.tag}limits"

    def usage(self, tenant: str, day: str) -> str:
        """Hash: rows and tokens of a tenant on one day (UTC, YYYY-MM-DD); USAGE_TTL_S."""
        return f"{self.tag}used:{day}:{tenant}"


@dataclass(frozen=True, slots=True)
class GateKeys:
    """Key names of the gateway's API keys, for all queues together: one slot, on the server of the queue."""

    name: str = "gate"

    @property
    def tag(self) -> str:
        return f"{PREFIX}{{{self.name}}}:"

    @property
    def keys(self) -> str:
        """Hash: API key's id -> its hash, limits and rights, JSON; for ever, an operator wrote it."""
        return f"{self.tag}keys"

    def use(self, key_id: str) -> str:
        """Hash: what one API key has left of its minute, and has used of its day; GATE_USE_TTL_S."""
        return f"{self.tag}use:{key_id}"
