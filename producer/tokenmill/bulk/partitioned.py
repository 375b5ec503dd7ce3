"""A run's rows over all partitions of a queue: one connection for each, side by side. Knows no files and no screen."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Self

from tokenmill.bulk.answers import Answer
from tokenmill.bulk.connection import QueueConnection
from tokenmill.bulk.planner import OutgoingRow
from tokenmill.bulk.pulse import WorkerTold
from tokenmill.bulk.run import SendStatus
from tokenmill.wire.keys import Keys, all_keys, partition_of

LOOK_S = 0.02  # so long at one partition while nothing is known of the others: they answer meanwhile, unheard


class PartitionedQueue:
    """A RequestQueue; a context manager."""

    def __init__(self, parts: Sequence[QueueConnection]) -> None:
        self._parts = parts
        self._turn = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for part in self._parts:
                stack.enter_context(part)

    def send(self, rows: Sequence[OutgoingRow]) -> list[SendStatus]:
        statuses: dict[str, SendStatus] = {}
        for number, part in enumerate(self._parts):
            here = [row for row in rows if self._of(row.request_id) == number]
            if here:
                names = [row.request_id for row in here]
                statuses |= dict(zip(names, part.send(here), strict=True))
        return [statuses[row.request_id] for row in rows]

    def wait(self, timeout_s: float) -> list[Answer]:
        """A short look at each in turn, from the one after the last; all that they have at once."""
        answers: list[Answer] = []
        looks = max(len(self._parts), round(timeout_s / LOOK_S))
        for number in range(looks):
            self._turn = (self._turn + 1) % len(self._parts)
            answers += self._parts[self._turn].wait(0.0 if answers else LOOK_S)
            if answers and number >= len(self._parts) - 1:
                break
        return answers

    def forget(self, request_ids: Sequence[str]) -> None:
        for number, part in enumerate(self._parts):
            here = [name for name in request_ids if self._of(name) == number]
            if here:
                part.forget(here)

    def workers(self) -> dict[str, WorkerTold]:
        """A worker has a lease in each partition, and counts once: by the word that came last."""
        told = [item for part in self._parts for item in part.workers().items()]
        return dict(sorted(told, key=lambda item: item[1].told_s))

    def abandon(self) -> None:
        for part in self._parts:
            part.abandon()

    def _of(self, request_id: str) -> int:
        return partition_of(request_id, len(self._parts))


def connect_queue(
    url: str, queue: str, partitions: int, *, group: str, on_idle: Callable[[], None] = lambda: None
) -> QueueConnection | PartitionedQueue:
    """To all of a queue."""
    if partitions == 1:
        return QueueConnection(url, Keys(queue), group=group, on_idle=on_idle)
    keys = all_keys(queue, partitions)
    return PartitionedQueue([QueueConnection(url, one, group=group, on_idle=on_idle) for one in keys])
