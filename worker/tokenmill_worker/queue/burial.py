"""The end of an entry that is no request: a dead letter, and a terminal error for whoever waits for its id. Pure."""

from tokenmill.wire.errors import DecodeError, InvalidRequestError
from tokenmill.wire.messages import ErrorInfo, TerminalEntry
from tokenmill.wire.store import Call, Delivery, Transitions


def burial(
    transitions: Transitions, worker: str, delivery: Delivery, error: DecodeError | InvalidRequestError
) -> Call[bool]:
    """`worker` is who the entry is pending for."""
    reason = error_info(error)
    return transitions.bury(
        worker,
        delivery.lane,
        delivery.entry_id,
        delivery.fields,
        f"{reason.code}: {reason.message}",
        terminal=TerminalEntry(type="error", finish_reason="error", error=reason),
        request_id=delivery.request_id,
    )


def error_info(error: DecodeError | InvalidRequestError) -> ErrorInfo:
    """As its reader is told."""
    code = "undecodable" if isinstance(error, DecodeError) else error.code
    return ErrorInfo(code=code, message=str(error))
