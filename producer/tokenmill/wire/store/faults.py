"""Which of the server's errors pass by themselves, and which say that we speak to the wrong node. Pure."""

from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

# The server is away, loading, promoting or moving a slot: nothing is wrong with what we asked, so we ask again.
# AskError is also a MovedError.
PASSING = (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    ReadOnlyError,
    TryAgainError,
)

# As a script reports them (Redis 6.2 puts words before the code), and codes that redis-py has no class for.
_MISDIRECTED_CODES = ("ASK ", "CLUSTERDOWN ", "MOVED ", "READONLY ", "UNBLOCKED ")
_PASSING_CODES = (*_MISDIRECTED_CODES, "BUSY ", "MASTERDOWN ", "MISCONF ", "NOREPLICAS ", "TRYAGAIN ")


def is_passing(error: Exception) -> bool:
    """The same command may be accepted later."""
    return isinstance(error, PASSING) or _has_code(error, _PASSING_CODES)


def is_misdirected(error: Exception) -> bool:
    """The node is not, or no longer, the master of what we asked about: who looks again may find another.

    UNBLOCKED: a master that becomes a replica sends its blocked readers away with it.
    """
    is_of_class = isinstance(error, (AskError, ClusterDownError, MasterDownError, ReadOnlyError))
    return is_of_class or _has_code(error, _MISDIRECTED_CODES)


def _has_code(error: Exception, codes: tuple[str, ...]) -> bool:
    text = str(error)
    return isinstance(error, ResponseError) and any(text.startswith(code) or f"-{code}" in text for code in codes)
