"""Prompts go onto Redis streams, a continuous batch answers them. Names load on first use (PEP 562)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenmill.client import AsyncClient, AsyncJob, Client, Job
    from tokenmill.wire.errors import (
        ConflictError,
        DecodeError,
        FencedError,
        InvalidRequestError,
        JobLostError,
        PartitionsError,
        QueueBusyError,
        RequestFailedError,
        ResultError,
        ResultTimeoutError,
        TokenmillError,
        UnavailableError,
        UnknownRequestError,
    )
    from tokenmill.wire.messages import (
        Choice,
        Completion,
        Delta,
        ErrorInfo,
        Message,
        SamplingParams,
        Timings,
        TokenLogprob,
        Usage,
    )
    from tokenmill.wire.store import QueueStatistics

_HOMES = {
    "tokenmill.client": ("AsyncClient", "AsyncJob", "Client", "Job"),
    "tokenmill.wire.errors": (
        "ConflictError",
        "DecodeError",
        "FencedError",
        "InvalidRequestError",
        "JobLostError",
        "PartitionsError",
        "QueueBusyError",
        "RequestFailedError",
        "ResultError",
        "ResultTimeoutError",
        "TokenmillError",
        "UnavailableError",
        "UnknownRequestError",
    ),
    "tokenmill.wire.messages": (
        "Choice",
        "Completion",
        "Delta",
        "ErrorInfo",
        "Message",
        "SamplingParams",
        "Timings",
        "TokenLogprob",
        "Usage",
    ),
    "tokenmill.wire.store": ("QueueStatistics",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "Choice",
    "Client",
    "Completion",
    "ConflictError",
    "DecodeError",
    "Delta",
    "ErrorInfo",
    "FencedError",
    "InvalidRequestError",
    "Job",
    "JobLostError",
    "Message",
    "PartitionsError",
    "QueueBusyError",
    "QueueStatistics",
    "RequestFailedError",
    "ResultError",
    "ResultTimeoutError",
    "SamplingParams",
    "Timings",
    "TokenLogprob",
    "TokenmillError",
    "UnavailableError",
    "UnknownRequestError",
    "Usage",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
