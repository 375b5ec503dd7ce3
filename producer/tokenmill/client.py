"""The producer's side: submit, stream, result, cancel. Thin, and the same for threads and for asyncio but for `await`.

What is sent and how a reply reads is decided in `wire` and `follow`; here it is only carried out.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from tokenmill.follow import BLOCK_S, NUM_SEATS, Effect, Follower, Pause, Read, Seats, Steps
from tokenmill.listening import Listener, Place
from tokenmill.partitions import weakest
from tokenmill.submitting import (
    ALL_SEATED,
    Core,
    RequestFields,
    accepted_ids,
    replies_of,
    submissions_of,
)
from tokenmill.wire.errors import (
    RequestFailedError,
    UnavailableError,
    UnknownRequestError,
)
from tokenmill.wire.keys import Keys
from tokenmill.wire.messages import Completion, Delta, JobState, check_request_id
from tokenmill.wire.store import (
    AsyncStore,
    CancelReply,
    Durability,
    JobInfo,
    Operation,
    QueueStatistics,
    Store,
    SubmitReply,
    connect,
    connect_async,
)

T = TypeVar("T")


class Client:
    """A queue, for producers that block. Threads may share it. Nothing is sent before the first call."""

    def __init__(self, url: str | None = None, queue: str = "default", partitions: int | None = None) -> None:
        """`url`: else TOKENMILL_REDIS_URL, else the local server. wire/store/routes.py lists the forms.

        `partitions`: of the queue, as its workers have it; else TOKENMILL_PARTITIONS, else 1.
        """
        self._core = Core(url, queue, partitions)
        self._stores = self._core.partitions.connect(self._connect)
        self._readers = self._core.partitions.connect(self._connect_reader)

    def _connect(self, tag: str) -> Store:
        return Store(connect(self._core.url, key=tag))

    def _connect_reader(self, tag: str) -> Store:
        return Store(connect(self._core.url, key=tag, block_s=BLOCK_S, retries=0, max_connections=NUM_SEATS))

    def submit(
        self, prompt: str | Sequence[int] | None = None, *, durable: bool = False, **fields: Unpack[RequestFields]
    ) -> "Job":
        """Enqueue one request; returns when the server has it.

            client.submit("Good morning!", delay_s=3600)                 # not before an hour has passed
            client.submit("Pay the bill.", durable=True).durability      # "aof": on the server's disk

        `durable` waits, two seconds at most, until the server has it on disk ("aof": Valkey, Redis 7.2 or newer) or,
        where the server cannot say so, until a replica has it ("replica"); "memory" says that neither came in time.

        The same id with the same request is the same job again. InvalidRequestError (ConflictError: the id is taken by
        another request) names the field to change; QueueBusyError says when to try again; UnavailableError, where we
        looked for a server.
        """
        return self.submit_many([{"prompt": prompt, **fields}], durable=durable)[0]

    def submit_many(self, requests: Sequence[Mapping[str, object]], *, durable: bool = False) -> "list[Job]":
        """Enqueue dicts of `submit`'s arguments, hundreds in a call; `durable` waits once for all of them.

        All are validated before the first is sent. After ConflictError or QueueBusyError those that were accepted
        stay so: with ids of your own, calling again does nothing twice.
        """
        submissions = submissions_of(requests)
        self._agree()
        replies: dict[int, SubmitReply] = {}
        trips = list(self._core.partitions.trips(submissions))
        for partition, some in groupby(trips, key=attrgetter("partition")):
            trips_there = list(some)
            answers = self._stores[partition].pipeline_each([trip.calls for trip in trips_there])
            for trip, answer in zip(trips_there, answers, strict=True):
                replies |= replies_of(trip, answer)
        accepted = accepted_ids(submissions, replies)
        durability = self._confirm({trip.partition for trip in trips}) if durable else None
        return [Job(self, request_id, is_known=True, durability=durability) for request_id in accepted]

    def job(self, request_id: str, *, partition: int | None = None) -> "Job":
        """A handle on a request submitted before, by whomever; nothing is sent.

        `partition`: where a raw entry without an id was added; every other request's follows from its id.
        """
        return Job(self, check_request_id(request_id), partition=partition)

    def statistics(self) -> QueueStatistics:
        """Depths, workers, ages: one immutable look."""
        self._agree()
        parts = zip(self._stores, self._core.partitions.transitions, strict=True)
        return QueueStatistics.sum([store.run(transitions.statistics()) for store, transitions in parts])

    def close(self) -> None:
        for store in (*self._stores, *self._readers):
            store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _agree(self) -> None:
        """Once, before anything is enqueued: does everybody count the partitions alike? PartitionsError: no."""
        if not self._core.has_agreed:
            self._stores[0].run(self._core.transitions(0).agree())
            self._core.has_agreed = True

    def _confirm(self, partitions: Iterable[int]) -> Durability:
        return weakest([self._stores[number].run(self._core.transitions(number).confirm()) for number in partitions])

    def _inspect(self, request_id: str, partition: int) -> JobInfo | None:
        return self._stores[partition].run(self._core.transitions(partition).inspect(request_id))

    def _cancel(self, request_id: str, partition: int) -> CancelReply:
        return self._stores[partition].run(self._core.transitions(partition).cancel([request_id]))[0]

    def _follow(self, follower: Follower) -> Iterator[Delta]:
        steps, answer = follower.steps(), None
        while (effect := _next_effect(steps, answer)) is not None:
            answer = None
            if isinstance(effect, Read):
                answer = self._read(effect, follower.partition)
            elif isinstance(effect, Pause):
                time.sleep(effect.seconds)
            else:
                yield effect

    def _read(self, effect: Read, partition: int) -> list[Any] | UnavailableError:
        try:
            return (self._readers if effect.is_blocking else self._stores)[partition].send(effect.commands)
        except UnavailableError as error:
            return error


class Job:
    """One request: its id, and what became of it. Cheap; make as many as you like.

    `durability`: what a durable submission reached, else None.
    """

    __slots__ = ("_client", "_is_known", "_partition", "durability", "id")

    def __init__(
        self,
        client: Client,
        request_id: str,
        *,
        partition: int | None = None,
        is_known: bool = False,
        durability: Durability | None = None,
    ) -> None:
        self.id = request_id
        self._partition = client._core.partition(request_id, partition)
        self.durability = durability
        self._client = client
        self._is_known = is_known

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def stream(self, after: str | None = None, *, timeout: float | None = None) -> Iterator[Delta]:
        """Deltas as they come, from the first or after the one whose `entry_id` is given, until the request is final.

        Whoever reads, whenever, gets the same deltas. It goes on through lost connections and changing workers.
        `timeout`: seconds for the whole of it. Raises what `result` raises.
        """
        follower = self._follower(after, timeout)
        yield from self._client._follow(follower)
        if follower.completion is not None:  # None: it was over before `after`
            _final(follower.completion)

    def result(self, timeout: float | None = None) -> Completion:
        """The completion, once it is final; a cancelled or expired one has what was generated, and says so.

        RequestFailedError: its final word is an error. ResultTimeoutError: not final after `timeout` seconds.
        UnknownRequestError, JobLostError: there is nothing to wait for.
        """
        follower = self._follower(None, timeout, wants_deltas=False)
        for _ in self._client._follow(follower):
            pass
        return _final(follower.completion)

    def status(self) -> JobState:
        """scheduled, queued, running; done, failed, cancelled, expired or dead. UnknownRequestError: there is none."""
        return _state(self.id, self._client._inspect(self.id, self._partition), self._client._core.keys)

    def cancel(self) -> CancelReply:
        """Stop it: `cancelled` at once, or `flagged` for its worker; `final` already, or `unknown`."""
        return self._client._cancel(self.id, self._partition)

    def _follower(self, after: str | None, timeout_s: float | None, *, wants_deltas: bool = True) -> Follower:
        core, known = self._client._core, self._is_known
        return core.follower(self.id, self._partition, after, timeout_s, is_known=known, wants_deltas=wants_deltas)


class AsyncClient:
    """As Client, for asyncio: the same methods, awaited."""

    def __init__(self, url: str | None = None, queue: str = "default", partitions: int | None = None) -> None:
        self._core = Core(url, queue, partitions)
        self._stores = self._core.partitions.connect(self._connect)
        self._readers = self._core.partitions.connect(self._connect_reader)
        self._core.seats = Seats(ALL_SEATED)
        self._listeners = [
            Listener(reads, rings, transitions)
            for reads, rings, transitions in zip(
                self._readers, self._stores, self._core.partitions.transitions, strict=True
            )
        ]

    def _connect(self, tag: str) -> AsyncStore:
        return AsyncStore(connect_async(self._core.url, key=tag))

    def _connect_reader(self, tag: str) -> AsyncStore:
        connected = connect_async(self._core.url, key=tag, block_s=BLOCK_S, retries=0, max_connections=1)
        return AsyncStore(connected)

    async def submit(
        self, prompt: str | Sequence[int] | None = None, *, durable: bool = False, **fields: Unpack[RequestFields]
    ) -> "AsyncJob":
        return (await self.submit_many([{"prompt": prompt, **fields}], durable=durable))[0]

    async def submit_many(self, requests: Sequence[Mapping[str, object]], *, durable: bool = False) -> "list[AsyncJob]":
        submissions = submissions_of(requests)
        await self._agree()
        replies: dict[int, SubmitReply] = {}
        trips = list(self._core.partitions.trips(submissions))
        for trip in trips:
            replies |= replies_of(trip, await self._stores[trip.partition].pipeline(trip.calls))
        accepted = accepted_ids(submissions, replies)
        durability = await self._confirm({trip.partition for trip in trips}) if durable else None
        return [AsyncJob(self, request_id, is_known=True, durability=durability) for request_id in accepted]

    def job(self, request_id: str, *, partition: int | None = None) -> "AsyncJob":
        return AsyncJob(self, check_request_id(request_id), partition=partition)

    async def perform(self, request_id: str, operation: Callable[[Keys], Operation[T]]) -> T:
        """Run what `wire.store` has for one request, on the server that holds it."""
        partition = self._core.partition(request_id, None)
        return await self._stores[partition].run(operation(self._core.transitions(partition).keys))

    async def statistics(self) -> QueueStatistics:
        await self._agree()
        parts = zip(self._stores, self._core.partitions.transitions, strict=True)
        return QueueStatistics.sum([await store.run(transitions.statistics()) for store, transitions in parts])

    async def close(self) -> None:
        for listener in self._listeners:
            await listener.close()
        for store in (*self._stores, *self._readers):
            await store.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _agree(self) -> None:
        if not self._core.has_agreed:
            await self._stores[0].run(self._core.transitions(0).agree())
            self._core.has_agreed = True

    async def _confirm(self, partitions: Iterable[int]) -> Durability:
        return weakest(
            [await self._stores[number].run(self._core.transitions(number).confirm()) for number in partitions]
        )

    async def _inspect(self, request_id: str, partition: int) -> JobInfo | None:
        return await self._stores[partition].run(self._core.transitions(partition).inspect(request_id))

    async def _cancel(self, request_id: str, partition: int) -> CancelReply:
        return (await self._stores[partition].run(self._core.transitions(partition).cancel([request_id])))[0]

    async def _follow(self, follower: Follower) -> AsyncIterator[list[Delta]]:
        """Deltas as they come in: those that one read brought, together."""
        steps, answer = follower.steps(), None
        news: list[Delta] = []
        listener = self._listeners[follower.partition]
        with listener.following(follower.result_key, follower.last_id) as place:
            while (effect := _next_effect(steps, answer)) is not None:
                answer = None
                if isinstance(effect, Delta):
                    news.append(effect)
                    continue
                if news:
                    yield news
                    news = []
                if isinstance(effect, Read):
                    answer = await self._read(effect, follower.partition, place)
                else:
                    await asyncio.sleep(effect.seconds)
        if news:
            yield news

    async def _read(self, effect: Read, partition: int, place: Place) -> list[Any] | UnavailableError:
        try:
            if effect.is_blocking:
                entries = await self._listeners[partition].wait(place, effect.block_s)
                return [[(place.key, entries)]] if entries else [None]
            return await self._stores[partition].send(effect.commands)
        except UnavailableError as error:
            return error


class AsyncJob:
    """As Job, for asyncio."""

    __slots__ = ("_client", "_is_known", "_partition", "durability", "id")

    def __init__(
        self,
        client: AsyncClient,
        request_id: str,
        *,
        partition: int | None = None,
        is_known: bool = False,
        durability: Durability | None = None,
    ) -> None:
        self.id = request_id
        self._partition = client._core.partition(request_id, partition)
        self.durability = durability
        self._client = client
        self._is_known = is_known

    def __repr__(self) -> str:
        return f"AsyncJob({self.id!r})"

    async def stream(self, after: str | None = None, *, timeout: float | None = None) -> AsyncIterator[Delta]:  # noqa: ASYNC109 (the same argument as Job.stream)
        follower = self._follower(after, timeout)
        async for deltas in self._client._follow(follower):
            for delta in deltas:
                yield delta
        if follower.completion is not None:  # None: it was over before `after`
            _final(follower.completion)

    async def news(self, after: str | None = None) -> AsyncIterator[list[Delta] | Completion]:
        """As `stream`, for who passes it on: all deltas that are there at once, and the completion at the end.

        The completion comes also where its final word is an error. Nothing comes if it was over before `after`.
        """
        follower = self._follower(after, None)
        async for deltas in self._client._follow(follower):
            yield deltas
        if follower.completion is not None:
            yield follower.completion

    async def result(self, timeout: float | None = None) -> Completion:  # noqa: ASYNC109 (as Job.result)
        follower = self._follower(None, timeout, wants_deltas=False)
        async for _ in self._client._follow(follower):
            pass
        return _final(follower.completion)

    async def status(self) -> JobState:
        return _state(self.id, await self._client._inspect(self.id, self._partition), self._client._core.keys)

    async def cancel(self) -> CancelReply:
        return await self._client._cancel(self.id, self._partition)

    def _follower(self, after: str | None, timeout_s: float | None, *, wants_deltas: bool = True) -> Follower:
        core, known = self._client._core, self._is_known
        return core.follower(self.id, self._partition, after, timeout_s, is_known=known, wants_deltas=wants_deltas)


def _next_effect(steps: Steps, answer: object) -> Effect | None:
    """None: it is over."""
    try:
        return steps.send(answer)
    except StopIteration:
        return None


def _final(completion: Completion | None) -> Completion:
    """The completion itself, unless its final word is an error."""
    assert completion is not None  # who follows from the start ends at the terminal entry, or in an error
    if completion.error is not None:
        error = completion.error
        raise RequestFailedError(completion.request_id, code=error.code, message=error.message, completion=completion)
    return completion


def _state(request_id: str, info: JobInfo | None, keys: Keys) -> JobState:
    if info is None:
        raise UnknownRequestError(
            request_id, f"no request {request_id!r} on queue {keys.queue!r}, or its result has expired"
        )
    return info.state
