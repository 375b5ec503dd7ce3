"""Publications, retries and final words in one pipeline to the server. Knows no thread and no outbox."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from tokenmill.wire.keys import MAX_JOBS_PER_CALL
from tokenmill.wire.store import Call, Claim, Finish, Held, Publication, Store, Transitions

from tokenmill_worker.queue.admission import Tenure
from tokenmill_worker.queue.isolation import CODE, explain, spread
from tokenmill_worker.queue.publisher import Receipt

Job = TypeVar("Job")
Reply = TypeVar("Reply")


class _Part(Generic[Job, Reply]):
    """One transition for any number of jobs, in calls of as many as a call may take."""

    def __init__(self, build: Callable[[Sequence[Job]], Call[list[Reply]]], jobs: Sequence[Job]) -> None:
        self._build = build
        self._chunks = [jobs[start : start + MAX_JOBS_PER_CALL] for start in range(0, len(jobs), MAX_JOBS_PER_CALL)]

    def calls(self) -> list[Call[list[Reply]]]:
        return [self._build(some) for some in self._chunks]

    def answers(self, store: Store, outcomes: Iterator[Any]) -> list[Reply | Exception]:
        """One for each job, from the next outcomes, which are those of the calls."""
        chunks = zip(self._chunks, outcomes, strict=False)
        return [answer for some, outcome in chunks for answer in spread(store, self._build, some, outcome)]


class ServerPost:
    """The `Post` of a publisher with a server."""

    def __init__(self, store: Store, transitions: Transitions) -> None:
        self._store = store
        self._transitions = transitions

    def send(
        self,
        worker: str,
        publications: Sequence[Publication],
        finishes: Sequence[Finish],
        retries: Sequence[Held] = (),
        *,
        wants_cancels: bool = True,
    ) -> Receipt:
        publish = _Part(partial(self._transitions.publish, worker), publications)
        finish = _Part(partial(self._transitions.finish, worker), finishes)
        retry = _Part(partial(self._transitions.retry, worker), retries)
        calls: list[Call[Any]] = [*publish.calls(), *finish.calls(), *retry.calls()]
        if wants_cancels:
            calls.append(self._transitions.cancels(worker))
        outcomes = self._store.attempt(calls)
        left = iter(outcomes)
        return Receipt(
            published=publish.answers(self._store, left),
            finished=finish.answers(self._store, left),
            retried=retry.answers(self._store, left),
            cancelled=_cancelled(outcomes[-1]) if wants_cancels else (),
        )

    def condemn(self, tenure: Tenure, error: Exception) -> bool:
        claim = Claim(tenure.lane, tenure.entry_id, tenure.request_id, group=tenure.group)
        call = self._transitions.condemn(tenure.worker, claim, fence=tenure.fence, code=CODE, message=explain(error))
        return self._store.run(call)


def _cancelled(renewal: Any) -> Sequence[str]:
    """Who cannot be told of cancels now, is told when the lease is renewed; that also says what is wrong."""
    return () if isinstance(renewal, Exception) else tuple(renewal.cancelled)
