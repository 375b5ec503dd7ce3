"""The end of an entry that is no request: a dead letter, and a terminal error for whoever waits for its id. Pure."""

from tokenmill.wire.errors import DecodeError, InvalidRequestError
from tokenmill.wire.keys import Keys, partition_of
from tokenmill.wire.messages import ErrorInfo, TerminalEntry
from tokenmill.wire.store import Call, Claim, Delivery, Transitions


def claim_of(keys: Keys, delivery: Delivery) -> Claim:
    """DecodeError or InvalidRequestError: it is no request, or stands where nobody looks for it; bury it so."""
    claim = delivery.claim()
    is_named = claim.request_id != f"{claim.lane.value}-{claim.entry_id}"
    if claim.raw is not None and is_named and not keys.owns(claim.request_id):
        raise InvalidRequestError(
            f"this is partition {keys.partition}, and id {claim.request_id!r} belongs to partition "
            f"{partition_of(claim.request_id, keys.partitions)} of {keys.partitions} (crc16(id) mod P): add it there",
            param="id",
            code="wrong_partition",
        )
    return claim


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
