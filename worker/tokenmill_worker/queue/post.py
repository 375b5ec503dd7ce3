"""Publications and final words in one pipeline to the server. Knows no thread and no outbox."""

from collections.abc import Sequence
from typing import Any, TypeVar

from tokenmill.wire.keys import MAX_JOBS_PER_CALL
from tokenmill.wire.store import Call, Finish, Publication, Store, Transitions

from tokenmill_worker.queue.publisher import Receipt

T = TypeVar("T")


class ServerPost:
    """The `Post` of a publisher with a server."""

    def __init__(self, store: Store, transitions: Transitions) -> None:
        self._store = store
        self._transitions = transitions

    def send(self, worker: str, publications: Sequence[Publication], finishes: Sequence[Finish]) -> Receipt:
        publishing = [self._transitions.publish(worker, some) for some in _chunks(publications)]
        finishing = [self._transitions.finish(worker, some) for some in _chunks(finishes)]
        calls: list[Call[Any]] = [*publishing, *finishing, self._transitions.cancels(worker)]  # of three reply types
        *replies, renewal = self._store.pipeline(calls)
        return Receipt(
            published=[reply for some in replies[: len(publishing)] for reply in some],
            finished=[reply for some in replies[len(publishing) :] for reply in some],
            cancelled=renewal.cancelled,
        )


def _chunks(jobs: Sequence[T]) -> list[Sequence[T]]:
    return [jobs[start : start + MAX_JOBS_PER_CALL] for start in range(0, len(jobs), MAX_JOBS_PER_CALL)]
