"""Which partition of a queue a request belongs to, and what is sent where. Pure: knows no connection."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from tokenmill.wire.errors import InvalidRequestError
from tokenmill.wire.keys import MAX_JOBS_PER_CALL, MAX_PARTITIONS, all_keys, partition_of
from tokenmill.wire.store import Call, Durability, Submission, SubmitReply, Transitions, is_spread

CALLS_PER_TRIP = 10  # requests per round trip, in calls of MAX_JOBS_PER_CALL

_WEAKEST_FIRST: tuple[Durability, ...] = ("memory", "replica", "aof")

T = TypeVar("T")


class Trip(NamedTuple):
    """One round trip to the node that has `partition`. `places`: where each reply's submission stood."""

    partition: int
    calls: list[Call[list[SubmitReply]]]
    places: list[int]


class Partitions:
    """`transitions` of each of them, by number."""

    def __init__(self, queue: str, number: int, *, url: str) -> None:
        if not 1 <= number <= MAX_PARTITIONS:
            raise InvalidRequestError(f"partitions must be 1 to {MAX_PARTITIONS}, got {number}", param="partitions")
        self.transitions = tuple(Transitions(keys) for keys in all_keys(queue, number))
        self._is_spread = number > 1 and is_spread(url)

    def of(self, request_id: str) -> int:
        return 0 if len(self.transitions) == 1 else partition_of(request_id, len(self.transitions))

    def connect(self, connect: Callable[[str], T]) -> list[T]:
        """For each partition what `connect` makes of its tag; the same for all where one node has them all."""
        tags = [transitions.keys.tag for transitions in self.transitions]
        return [connect(tag) for tag in tags] if self._is_spread else [connect(tags[0])] * len(tags)

    def trips(self, submissions: Sequence[Submission]) -> Iterator[Trip]:
        """All calls that submit these, a bounded number in each trip."""
        if len(submissions) == 1 and len(self.transitions) == 1:
            yield Trip(0, [self.transitions[0].submit(submissions)], [0])
            return
        parts = list(self._parts(submissions))
        nodes = sorted({partition for partition, _ in parts}) if self._is_spread else [0]
        for node in nodes:
            here = [part for part in parts if part[0] == node] if self._is_spread else parts
            for start in range(0, len(here), CALLS_PER_TRIP):
                some = here[start : start + CALLS_PER_TRIP]
                calls = [self.transitions[number].submit([submissions[i] for i in places]) for number, places in some]
                yield Trip(node, calls, [place for _, places in some for place in places])

    def _parts(self, submissions: Sequence[Submission]) -> Iterator[tuple[int, Sequence[int]]]:
        """(partition, places of its submissions), as many as go into a call."""
        for partition, places in self._sorted(submissions).items():
            for start in range(0, len(places), MAX_JOBS_PER_CALL):
                yield partition, places[start : start + MAX_JOBS_PER_CALL]

    def _sorted(self, submissions: Sequence[Submission]) -> dict[int, Sequence[int]]:
        if len(self.transitions) == 1:
            return {0: range(len(submissions))}
        places: dict[int, list[int]] = {}
        for place, submission in enumerate(submissions):
            places.setdefault(self.of(submission.request_id), []).append(place)
        return dict(places)


def weakest(reached: Sequence[Durability]) -> Durability:
    """What can be said of requests that went to several nodes."""
    return min(reached, key=_WEAKEST_FIRST.index)
