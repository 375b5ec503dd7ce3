"""One look at a queue and all who serve it, as frozen values. Knows no server and no page; holds no prompt."""

from dataclasses import asdict, dataclass, field
from typing import Any

from tokenmill.wire.keys import Lane

LANE_NAMES = {
    Lane.RESUME: "resume",
    Lane.HIGH: "high",
    Lane.NORMAL: "normal",
    Lane.BULK: "bulk",
    Lane.QUARANTINE: "quarantine",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneLook:
    """`backlog` waits, `in_flight` is held by workers; `oldest_age_s` of the oldest of both."""

    name: str
    backlog: int
    in_flight: int
    oldest_age_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """By the second, over the last few. `cached_share`: of the prompt tokens that came in, those found in the cache."""

    decode_tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    steps_per_s: float = 0.0
    requests_per_s: float = 0.0
    cached_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What only grows while a worker lives; `told_s` by its own clock."""

    told_s: float = 0.0
    num_decode_tokens: int = 0
    num_prefill_tokens: int = 0
    num_cached_tokens: int = 0
    num_steps: int = 0
    num_ended: int = 0
    num_failed: int = 0
    num_retried: int = 0
    num_preemptions: int = 0
    num_renewals: int = 0
    num_fenced: int = 0
    num_reaped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLook:
    """One live worker. `lease_left_s` of the partition whose lease ends first.

    `picture_name`: what its batch's picture is kept under; None: its lease in partition 0 is not there now.
    """

    name: str
    picture_name: str | None
    lease_left_s: float
    model: str = ""
    device: str = ""
    dtype: str = ""
    host: str = ""
    num_running: int = 0
    num_waiting: int = 0
    max_num_seqs: int = 0
    num_pages: int = 0
    num_free_pages: int = 0
    first_token_p50_ms: float | None = None
    first_token_p95_ms: float | None = None
    totals: Totals = field(default_factory=Totals)
    rates: Rates = field(default_factory=Rates)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureLook:
    """A request that ended with an error."""

    at_ms: int
    request_id: str
    code: str
    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterLook:
    """A dead letter. `name` is what `tokenmill dead` calls it."""

    name: str
    at_ms: int
    request_id: str
    lane: str
    reason: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLook:
    """A bulk run. `out`: its output file's name, without the folder."""

    run_id: str
    state: str
    is_stopping: bool
    out: str
    num_rows: int | None
    num_settled: int
    num_failed: int
    num_in_flight: int
    rows_per_s: float
    tokens_per_s: float
    eta_s: float | None
    submitted: str | None
    note: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSnapshot:
    """`at_ms`: server's clock. `runs` None: what carries bulk runs is not installed here, or not to be reached."""

    at_ms: int
    queue: str
    partitions: int
    depth: int
    in_flight: int
    oldest_age_s: float | None
    scheduled: int
    lanes: tuple[LaneLook, ...]
    workers: tuple[WorkerLook, ...]
    rates: Rates
    first_token_p50_ms: float | None
    first_token_p95_ms: float | None
    num_dead_letters: int
    dead_letters: tuple[LetterLook, ...]
    failures: tuple[FailureLook, ...]
    runs: tuple[RunLook, ...] | None

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
