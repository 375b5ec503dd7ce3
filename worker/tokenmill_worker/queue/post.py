"""Publications, retries and final words in one pipeline to the server. Knows no thread and no outbox."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from tokenmill.wire.keys import MAX_JOBS_PER_CALL
from tokenmill.wire.store import Call, Claim, Finish, Held, Publication, Store, Transitions

from tokenmill_worker.queue.admission import Tenure
from tokenmill_worker.queue.isolation import CODE, explain, spread
from tokenmill_worker.queue.publisher import Receipt

Build = Callable[[str, Sequence[Any]], Call[Any]]  # a transition's call, for a worker, of some jobs


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
        transitions = self._transitions
        builds = transitions.publish, transitions.finish, transitions.retry
        parts = list(_parts(builds, (publications, finishes, retries)))
        calls: list[Call[Any]] = [build(worker, some) for build, some, _ in parts]
        if wants_cancels:
            calls.append(transitions.cancels(worker))
        outcomes = self._store.attempt(calls)
        answers: tuple[list[Any], list[Any], list[Any]] = [], [], []  # as `builds`
        for (build, some, kind), outcome in zip(parts, outcomes, strict=False):
            answers[kind].extend(spread(self._store, partial(build, worker), some, outcome))
        return Receipt(*answers, _cancelled(outcomes[-1]) if wants_cancels else ())

    def condemn(self, tenure: Tenure, error: Exception) -> bool:
        claim = Claim(tenure.lane, tenure.entry_id, tenure.request_id, group=tenure.group)
        call = self._transitions.condemn(tenure.worker, claim, fence=tenure.fence, code=CODE, message=explain(error))
        return self._store.run(call)


def _parts(builds: Sequence[Build], jobs: Sequence[Sequence[Any]]) -> Iterator[tuple[Build, Sequence[Any], int]]:
    """Calls of as many jobs as a call may take: how to build it, of which jobs, and of which kind."""
    for kind, (build, all_) in enumerate(zip(builds, jobs, strict=True)):
        for start in range(0, len(all_), MAX_JOBS_PER_CALL):
            yield build, all_[start : start + MAX_JOBS_PER_CALL], kind


def _cancelled(renewal: Any) -> Sequence[str]:
    """Who cannot be told of cancels now, is told when the lease is renewed; that also says what is wrong."""
    return () if isinstance(renewal, Exception) else tuple(renewal.cancelled)
