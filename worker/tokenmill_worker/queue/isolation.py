"""One bad request in a call fails the call: find it, and answer the others. Knows no transition."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from redis.exceptions import RedisError
from tokenmill.wire.errors import DecodeError
from tokenmill.wire.store import Call, Store

from tokenmill_worker.queue.outage import OUTAGE

Job = TypeVar("Job")
Reply = TypeVar("Reply")

CODE = "keys_corrupted"
BROKEN = (RedisError, DecodeError)  # an OUTAGE may be a RedisError too: ask for that first


def is_broken(error: BaseException) -> bool:
    """What we asked cannot be done, now or later: somebody wrote into the keys of a request."""
    return isinstance(error, BROKEN) and not isinstance(error, OUTAGE)


def spread(
    store: Store,
    build: Callable[[Sequence[Job]], Call[list[Reply]]],
    jobs: Sequence[Job],
    outcome: list[Reply] | Exception,
) -> list[Reply | Exception]:
    """One answer for each of a call's jobs. Where one of them broke the call, each is asked again alone."""
    if not isinstance(outcome, Exception):
        return [*outcome]
    if len(jobs) == 1 or not is_broken(outcome):
        return [outcome] * len(jobs)
    alone = store.attempt([build([job]) for job in jobs])
    return [answer if isinstance(answer, Exception) else answer[0] for answer in alone]


def explain(error: Exception) -> str:
    """For the request's reader."""
    return f"somebody else wrote into the keys of this request: {error}"
