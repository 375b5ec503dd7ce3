"""Every error that tokenmill raises at its users, as one tree.

TokenmillError
├── InvalidRequestError     the request cannot be accepted as it stands; `param` names the field
│   └── ConflictError       the id already belongs to a request with another body
├── QueueBusyError          backpressure: try again after `retry_after_s`
├── PartitionsError         the queue has another number of partitions than we were told
├── UnavailableError        no server at the URL, or it went away for longer than we retry
├── DecodeError             bytes on the wire that are no message of ours
├── ResultError             a request has no result to give
│   ├── RequestFailedError  its final word is an error: `code`, and the partial `completion`
│   ├── ResultTimeoutError  not final yet after the time the caller was willing to wait
│   ├── UnknownRequestError no such id on this queue, or its result expired before anyone looked
│   └── JobLostError        it was there and is gone without a final word: the server lost data, or it expired
└── FencedError             (workers) another worker owns this request, or our lease ran out
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenmill.wire.messages import Completion


class TokenmillError(Exception):
    """The root: `except TokenmillError` catches all that we raise on purpose."""


class InvalidRequestError(TokenmillError):
    """The message says what to change; `param` is the field at fault, `code` is stable for programs."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ConflictError(InvalidRequestError):
    """The first request under this id is undisturbed; use another id, or send the same body again."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"id {request_id!r} is taken by a request with another body: choose another id",
            param="id",
            code="conflict",
        )
        self.request_id = request_id


class QueueBusyError(TokenmillError):
    """The lane is at its depth limit, or the server near its memory limit. Nothing was enqueued."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PartitionsError(TokenmillError):
    """Who counts partitions differently looks for requests where they are not. Nothing was enqueued."""

    def __init__(self, queue: str, *, known: int, told: int) -> None:
        super().__init__(
            f"queue {queue!r} has {known} partitions, not {told}: say partitions={known}, --partitions {known} or "
            f"TOKENMILL_PARTITIONS={known}. To change it, let the queue run empty, stop its workers and clients, and "
            f"DEL tm:{{{queue}.0}}:p"
        )
        self.known = known


class UnavailableError(TokenmillError):
    """The message names the URL (without its password) and what the server or the network said."""


class DecodeError(TokenmillError):
    """`param` names the field where one is to blame."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ResultError(TokenmillError):
    """A request has no result to give; `request_id` says which."""

    def __init__(self, request_id: str, message: str) -> None:
        super().__init__(message)
        self.request_id = request_id


class RequestFailedError(ResultError):
    """The request's final word is an error."""

    def __init__(self, request_id: str, *, code: str, message: str, completion: "Completion") -> None:
        super().__init__(request_id, f"request {request_id!r} failed ({code}): {message}")
        self.code = code
        self.completion = completion


class ResultTimeoutError(ResultError, TimeoutError):
    """The request goes on; ask again, or cancel it."""


class UnknownRequestError(ResultError):
    """Check the id and the queue's name; results are kept for their `result_ttl_s` only."""


class JobLostError(ResultError):
    """It was seen and is gone without a final word. Submit it again under the same id."""


class FencedError(TokenmillError):
    """Whoever gets this no longer owns what it was about to write, and must drop it."""
