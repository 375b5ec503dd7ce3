"""What travels between producers and workers, as frozen values with encode and decode. Knows no Redis."""

from tokenmill.wire.messages.entries import (
    ChoiceText,
    DeltaEntry,
    Entry,
    ResetEntry,
    TerminalEntry,
    TerminalType,
    decode_entry,
    split_stream_id,
    stream_id,
)
from tokenmill.wire.messages.picture import BatchPicture, RowBar, StepShape
from tokenmill.wire.messages.plain import PlainRequest, encode_plain
from tokenmill.wire.messages.raw import RawEntry
from tokenmill.wire.messages.request import (
    PROTOCOL_VERSION,
    Message,
    Priority,
    Request,
    RequestDecoder,
    SamplingParams,
    check_request_id,
)
from tokenmill.wire.messages.result import (
    FINAL_STATES,
    Choice,
    Completion,
    Delta,
    ErrorInfo,
    FinishReason,
    JobState,
    Piece,
    Timings,
    TokenLogprob,
    Usage,
)

__all__ = [
    "FINAL_STATES",
    "PROTOCOL_VERSION",
    "BatchPicture",
    "Choice",
    "ChoiceText",
    "Completion",
    "Delta",
    "DeltaEntry",
    "Entry",
    "ErrorInfo",
    "FinishReason",
    "JobState",
    "Message",
    "Piece",
    "PlainRequest",
    "Priority",
    "RawEntry",
    "Request",
    "RequestDecoder",
    "ResetEntry",
    "RowBar",
    "SamplingParams",
    "StepShape",
    "TerminalEntry",
    "TerminalType",
    "Timings",
    "TokenLogprob",
    "Usage",
    "check_request_id",
    "decode_entry",
    "encode_plain",
    "split_stream_id",
    "stream_id",
]
