"""The end of an entry that is no request: a dead letter, and a terminal error for whoever waits for its id. Pure."""

from tokenmill.wire.errors import DecodeError, InvalidRequestError
from tokenmill.wire.messages import ErrorInfo, TerminalEntry
from tokenmill.wire.store import Call, Delivery, Transitions


def burial(
    transitions: Transitions, worker: str, delivery: Delivery, error: DecodeError | InvalidRequestError
) -> Call[bool]:
    """`worker` is who the entry is pending for."""
    code, message = code_and_message(error)
    return transitions.bury(
        worker,
        delivery.lane,
        delivery.entry_id,
        delivery.fields,
        f"{code}: {message}",
        terminal=TerminalEntry(type="error", finish_reason="error", error=ErrorInfo(code=code, message=message)),
        request_id=delivery.request_id,
    )


def code_and_message(error: DecodeError | InvalidRequestError) -> tuple[str, str]:
    """As its reader is told."""
    return "undecodable" if isinstance(error, DecodeError) else error.code, str(error)
