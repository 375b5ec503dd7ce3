"""What is known of one batch, as it stands on disk and as OpenAI's clients see it. Knows no run and no queue."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
FINAL: frozenset[Status] = frozenset({"completed", "failed", "expired", "cancelled"})

ID_PREFIX = "batch_"


class Counts(NamedTuple):
    """Of requests: all, and those that ended well or not."""

    total: int = 0
    completed: int = 0
    failed: int = 0


NO_COUNTS = Counts()


class Usage(NamedTuple):
    """Tokens of all finished requests."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchError:
    """Why a batch failed as a whole. `line`: of the input, from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """Times are Unix seconds. `owner`: a tenant. `queue`: where its requests go.

    `status` on disk is validating, in_progress or final; cancelling is told by `cancelling_at`.
    """

    batch_id: str
    owner: str
    queue: str
    input_file_id: str
    endpoint: str
    completion_window: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None = None
    output_expires_after_s: int | None = None
    status: Status = "validating"
    model: str | None = None
    counts: Counts = NO_COUNTS
    usage: Usage | None = None
    errors: tuple[BatchError, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "BatchRecord":
        usage = value["usage"]
        return cls(
            **{
                **value,
                "counts": Counts(*value["counts"]),
                "usage": None if usage is None else Usage(*usage),
                "errors": tuple(BatchError(**error) for error in value["errors"]),
            }
        )

    def shown(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        return {
            "id": self.batch_id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": _shown_errors(self.errors),
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": "cancelling" if self.cancelling_at and not self.is_final else self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "in_progress_at": self.in_progress_at,
            "expires_at": self.expires_at,
            "finalizing_at": self.finalizing_at,
            "completed_at": self.completed_at,
            "failed_at": self.failed_at,
            "expired_at": self.expired_at,
            "cancelling_at": self.cancelling_at,
            "cancelled_at": self.cancelled_at,
            "request_counts": self.counts._asdict(),
            "usage": _shown_usage(self.usage),
            "metadata": self.metadata,
        }


def _shown_errors(errors: tuple[BatchError, ...]) -> dict[str, Any] | None:
    return {"object": "list", "data": [asdict(error) for error in errors]} if errors else None


def _shown_usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
