"""The producer's side: submit, stream, result, cancel. Thin, and the same for threads and for asyncio but for `await`.

What is sent and how a reply reads is decided in `wire` and `follow`; here it is only carried out.
"""

import asyncio
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack

from tokenmill.follow import BLOCK_S, NUM_SEATS, Effect, Follower, Pause, Read, Seats, Steps
from tokenmill.listening import Listener, Place
from tokenmill.partitions import Partitions, Trip, weakest
from tokenmill.tracing import current_traceparent
from tokenmill.wire.errors import (
    ConflictError,
    InvalidRequestError,
    QueueBusyError,
    RequestFailedError,
    UnavailableError,
    UnknownRequestError,
)
from tokenmill.wire.keys import Keys
from tokenmill.wire.messages import Completion, Delta, JobState, Priority, SamplingParams, check_request_id
from tokenmill.wire.store import (
    DEFAULT_URL,
    AsyncStore,
    CancelReply,
    Durability,
    JobInfo,
    Operation,
    QueueStatistics,
    Store,
    Submission,
    SubmitReply,
    Transitions,
    connect,
    connect_async,
)

T = TypeVar("T")

URL_VARIABLE = "TOKENMILL_REDIS_URL"
PARTITIONS_VARIABLE = "TOKENMILL_PARTITIONS"

MAX_DELAY_S = 366 * 86_400  # as far as a deadline may be away

ALL_SEATED = 1 << 31  # asyncio clients: one connection reads for everybody, so nobody has to stand

_ID_BYTES = 12  # of a fresh id: among a billion, two are the same with a chance of 10^-11
_QUEUE = re.compile(r"[A-Za-z0-9._-]{1,100}")


class RequestFields(TypedDict, total=False):
    """What `submit` takes beside the prompt; each is explained in the protocol."""

    messages: Sequence[Mapping[str, object]] | None
    id: str | None
    model: str | None
    priority: Priority | None
    deadline_s: float | None
    delay_s: float | None
    group: str | None
    stream: Literal["delta", "final"] | None
    result_ttl_s: int | None
    traceparent: str | None
    on_detach: Literal["continue", "cancel"] | None
    sampling: SamplingParams | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    max_tokens: int | None
    max_completion_tokens: int | None
    min_tokens: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    seed: int | None
    ignore_eos: bool | None
    logprobs: int | bool | None
    top_logprobs: int | None
    n: int | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    user: str | None


class _Core:
    """What both clients share: everything that needs no answer from the server."""

    def __init__(self, url: str | None, queue: str, partitions: int | None) -> None:
        if not _QUEUE.fullmatch(queue):
            raise InvalidRequestError("a queue's name is 1 to 100 characters out of A-Z a-z 0-9 . _ -", param="queue")
        self.url = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
        self.partitions = Partitions(queue, _given_partitions() if partitions is None else partitions, url=self.url)
        self.keys = self.partitions.transitions[0].keys
        self.seats = Seats()
        self.has_agreed = False

    def transitions(self, partition: int) -> Transitions:
        return self.partitions.transitions[partition]

    def partition(self, request_id: str, given: int | None) -> int:
        """`given`: of a raw entry without an id, which may stand in any."""
        if given is None:
            return self.partitions.of(request_id)
        if not 0 <= given < len(self.partitions.transitions):
            raise InvalidRequestError(f"there is no partition {given} of this queue", param="partition")
        return given

    def follower(
        self, request_id: str, partition: int, after: str | None, timeout_s: float | None, *, is_known: bool
    ) -> Follower:
        keys = self.transitions(partition).keys
        return Follower(keys, request_id, after=after, timeout_s=timeout_s, is_known=is_known, seats=self.seats)


class Client:
    """A queue, for producers that block. Threads may share it. Nothing is sent before the first call."""

    def __init__(self, url: str | None = None, queue: str = "default", partitions: int | None = None) -> None:
        """`url`: else TOKENMILL_REDIS_URL, else the local server. wire/store/routes.py lists the forms.

        `partitions`: of the queue, as its workers have it; else TOKENMILL_PARTITIONS, else 1.
        """
        self._core = _Core(url, queue, partitions)
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
        submissions = _submissions(requests)
        self._agree()
        replies: dict[int, SubmitReply] = {}
        trips = list(self._core.partitions.trips(submissions))
        for trip in trips:
            replies |= _replies(trip, self._stores[trip.partition].pipeline(trip.calls))
        accepted = _accepted(submissions, replies)
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
        follower = self._follower(None, timeout)
        for _ in self._client._follow(follower):
            pass
        return _final(follower.completion)

    def status(self) -> JobState:
        """scheduled, queued, running; done, failed, cancelled, expired or dead. UnknownRequestError: there is none."""
        return _state(self.id, self._client._inspect(self.id, self._partition), self._client._core.keys)

    def cancel(self) -> CancelReply:
        """Stop it: `cancelled` at once, or `flagged` for its worker; `final` already, or `unknown`."""
        return self._client._cancel(self.id, self._partition)

    def _follower(self, after: str | None, timeout_s: float | None) -> Follower:
        return self._client._core.follower(self.id, self._partition, after, timeout_s, is_known=self._is_known)


class AsyncClient:
    """As Client, for asyncio: the same methods, awaited."""

    def __init__(self, url: str | None = None, queue: str = "default", partitions: int | None = None) -> None:
        self._core = _Core(url, queue, partitions)
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
        submissions = _submissions(requests)
        await self._agree()
        replies: dict[int, SubmitReply] = {}
        trips = list(self._core.partitions.trips(submissions))
        for trip in trips:
            replies |= _replies(trip, await self._stores[trip.partition].pipeline(trip.calls))
        accepted = _accepted(submissions, replies)
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
        follower = self._follower(None, timeout)
        async for _ in self._client._follow(follower):
            pass
        return _final(follower.completion)

    async def status(self) -> JobState:
        return _state(self.id, await self._client._inspect(self.id, self._partition), self._client._core.keys)

    async def cancel(self) -> CancelReply:
        return await self._client._cancel(self.id, self._partition)

    def _follower(self, after: str | None, timeout_s: float | None) -> Follower:
        return self._client._core.follower(self.id, self._partition, after, timeout_s, is_known=self._is_known)


def _given_partitions() -> int:
    given = os.environ.get(PARTITIONS_VARIABLE) or "1"
    if not given.isdecimal():
        raise InvalidRequestError(f"{PARTITIONS_VARIABLE}={given!r} is no number", param="partitions")
    return int(given)


def _submissions(requests: Sequence[Mapping[str, object]]) -> list[Submission]:
    """Each validated, under its own id or a fresh one, and in the caller's trace if there is one."""
    if (trace := current_traceparent()) is not None:
        requests = [{"traceparent": trace, **fields} for fields in requests]
    fresh = secrets.token_bytes(_ID_BYTES * len(requests)).hex()
    width = 2 * _ID_BYTES
    return [_submission(fields, fresh[width * i : width * (i + 1)]) for i, fields in enumerate(requests)]


def _submission(fields: Mapping[str, object], fresh_id: str) -> Submission:
    given = dict(fields)
    request_id, delay_s = given.pop("id", None), given.pop("delay_s", None)
    return Submission.build(
        fresh_id if request_id is None else check_request_id(request_id),
        given,
        not_before_ms=None if delay_s is None else _delay_ms(delay_s),
    )


def _delay_ms(delay_s: object) -> int | None:
    """None: at once."""
    if not isinstance(delay_s, int | float) or isinstance(delay_s, bool) or not 0 <= delay_s <= MAX_DELAY_S:
        raise InvalidRequestError(f"delay_s must be seconds, from 0 to {MAX_DELAY_S}", param="delay_s")
    return round(delay_s * 1000) or None


def _replies(trip: Trip, replies: Sequence[list[SubmitReply]]) -> dict[int, SubmitReply]:
    """By where the submission stood."""
    return dict(zip(trip.places, (reply for call in replies for reply in call), strict=True))


def _accepted(submissions: Sequence[Submission], replies: Mapping[int, SubmitReply]) -> list[str]:
    for place, submission in enumerate(submissions):
        reply = replies[place]
        if reply.status == "conflict":
            raise ConflictError(submission.request_id)
        if reply.status == "busy":
            raise QueueBusyError(
                f"lane {submission.lane.name.lower()} is full: try again later",
                retry_after_s=(reply.retry_after_ms or 1000) / 1000,
            )
    return [submission.request_id for submission in submissions]


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
