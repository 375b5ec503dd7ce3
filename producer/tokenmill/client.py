"""The producer's side: submit, stream, result, cancel. Thin, and the same for threads and for asyncio but for `await`.

What is sent and how a reply reads is decided in `wire` and `follow`; here it is only carried out.
"""

import asyncio
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack

from tokenmill.follow import BLOCK_S, NUM_SEATS, Effect, Follower, Pause, Read, Seats, Steps
from tokenmill.wire.errors import (
    ConflictError,
    InvalidRequestError,
    QueueBusyError,
    RequestFailedError,
    UnavailableError,
    UnknownRequestError,
)
from tokenmill.wire.keys import MAX_JOBS_PER_CALL, Keys
from tokenmill.wire.messages import Completion, Delta, JobState, Priority, SamplingParams, check_request_id
from tokenmill.wire.store import (
    DEFAULT_URL,
    AsyncStore,
    Call,
    CancelReply,
    Durability,
    JobInfo,
    QueueStatistics,
    Store,
    Submission,
    SubmitReply,
    Transitions,
    connect,
    connect_async,
)

URL_VARIABLE = "TOKENMILL_REDIS_URL"
CALLS_PER_TRIP = 10  # submit_many: requests per round trip, in calls of MAX_JOBS_PER_CALL

MAX_DELAY_S = 366 * 86_400  # as far as a deadline may be away

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

    def __init__(self, url: str | None, queue: str) -> None:
        if not _QUEUE.fullmatch(queue):
            raise InvalidRequestError("a queue's name is 1 to 100 characters out of A-Z a-z 0-9 . _ -", param="queue")
        self.url = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
        self.keys = Keys(queue)
        self.transitions = Transitions(self.keys)
        self.seats = Seats()

    def follower(self, request_id: str, after: str | None, timeout_s: float | None, *, is_known: bool) -> Follower:
        return Follower(self.keys, request_id, after=after, timeout_s=timeout_s, is_known=is_known, seats=self.seats)

    def calls(self, submissions: Sequence[Submission]) -> list[Call[list[SubmitReply]]]:
        starts = range(0, len(submissions), MAX_JOBS_PER_CALL)
        return [self.transitions.submit(submissions[start : start + MAX_JOBS_PER_CALL]) for start in starts]


class Client:
    """A queue, for producers that block. Threads may share it. Nothing is sent before the first call."""

    def __init__(self, url: str | None = None, queue: str = "default") -> None:
        """`url`: else TOKENMILL_REDIS_URL, else the local server. wire/store/routes.py lists the forms."""
        self._core = _Core(url, queue)
        url, key = self._core.url, self._core.keys.tag
        self._store = Store(connect(url, key=key))
        self._readers = Store(connect(url, key=key, block_s=BLOCK_S, retries=0, max_connections=NUM_SEATS))

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
        calls = self._core.calls(submissions)
        replies: list[list[SubmitReply]] = []
        for start in range(0, len(calls), CALLS_PER_TRIP):
            replies += self._store.pipeline(calls[start : start + CALLS_PER_TRIP])
        accepted = _accepted(submissions, replies)
        durability = self._store.run(self._core.transitions.confirm()) if durable else None
        return [Job(self, request_id, is_known=True, durability=durability) for request_id in accepted]

    def job(self, request_id: str) -> "Job":
        """A handle on a request submitted before, by whomever; nothing is sent."""
        return Job(self, check_request_id(request_id))

    def statistics(self) -> QueueStatistics:
        """Depths, workers, ages: one immutable look."""
        return self._store.run(self._core.transitions.statistics())

    def close(self) -> None:
        self._store.close()
        self._readers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _inspect(self, request_id: str) -> JobInfo | None:
        return self._store.run(self._core.transitions.inspect(request_id))

    def _cancel(self, request_id: str) -> CancelReply:
        return self._store.run(self._core.transitions.cancel([request_id]))[0]

    def _follow(self, follower: Follower) -> Iterator[Delta]:
        steps, answer = follower.steps(), None
        while (effect := _next_effect(steps, answer)) is not None:
            answer = None
            if isinstance(effect, Read):
                answer = self._read(effect)
            elif isinstance(effect, Pause):
                time.sleep(effect.seconds)
            else:
                yield effect

    def _read(self, effect: Read) -> list[Any] | UnavailableError:
        try:
            return (self._readers if effect.is_blocking else self._store).send(effect.commands)
        except UnavailableError as error:
            return error


class Job:
    """One request: its id, and what became of it. Cheap; make as many as you like.

    `durability`: what a durable submission reached, else None.
    """

    __slots__ = ("_client", "_is_known", "durability", "id")

    def __init__(
        self, client: Client, request_id: str, *, is_known: bool = False, durability: Durability | None = None
    ) -> None:
        self.id = request_id
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
        return _state(self.id, self._client._inspect(self.id), self._client._core.keys)

    def cancel(self) -> CancelReply:
        """Stop it: `cancelled` at once, or `flagged` for its worker; `final` already, or `unknown`."""
        return self._client._cancel(self.id)

    def _follower(self, after: str | None, timeout_s: float | None) -> Follower:
        return self._client._core.follower(self.id, after, timeout_s, is_known=self._is_known)


class AsyncClient:
    """As Client, for asyncio: the same methods, awaited."""

    def __init__(self, url: str | None = None, queue: str = "default") -> None:
        self._core = _Core(url, queue)
        url, key = self._core.url, self._core.keys.tag
        self._store = AsyncStore(connect_async(url, key=key))
        self._readers = AsyncStore(connect_async(url, key=key, block_s=BLOCK_S, retries=0, max_connections=NUM_SEATS))

    async def submit(
        self, prompt: str | Sequence[int] | None = None, *, durable: bool = False, **fields: Unpack[RequestFields]
    ) -> "AsyncJob":
        return (await self.submit_many([{"prompt": prompt, **fields}], durable=durable))[0]

    async def submit_many(self, requests: Sequence[Mapping[str, object]], *, durable: bool = False) -> "list[AsyncJob]":
        submissions = _submissions(requests)
        calls = self._core.calls(submissions)
        replies: list[list[SubmitReply]] = []
        for start in range(0, len(calls), CALLS_PER_TRIP):
            replies += await self._store.pipeline(calls[start : start + CALLS_PER_TRIP])
        accepted = _accepted(submissions, replies)
        durability = await self._store.run(self._core.transitions.confirm()) if durable else None
        return [AsyncJob(self, request_id, is_known=True, durability=durability) for request_id in accepted]

    def job(self, request_id: str) -> "AsyncJob":
        return AsyncJob(self, check_request_id(request_id))

    async def statistics(self) -> QueueStatistics:
        return await self._store.run(self._core.transitions.statistics())

    async def close(self) -> None:
        await self._store.close()
        await self._readers.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _inspect(self, request_id: str) -> JobInfo | None:
        return await self._store.run(self._core.transitions.inspect(request_id))

    async def _cancel(self, request_id: str) -> CancelReply:
        return (await self._store.run(self._core.transitions.cancel([request_id])))[0]

    async def _follow(self, follower: Follower) -> AsyncIterator[Delta]:
        steps, answer = follower.steps(), None
        while (effect := _next_effect(steps, answer)) is not None:
            answer = None
            if isinstance(effect, Read):
                answer = await self._read(effect)
            elif isinstance(effect, Pause):
                await asyncio.sleep(effect.seconds)
            else:
                yield effect

    async def _read(self, effect: Read) -> list[Any] | UnavailableError:
        try:
            return await (self._readers if effect.is_blocking else self._store).send(effect.commands)
        except UnavailableError as error:
            return error


class AsyncJob:
    """As Job, for asyncio."""

    __slots__ = ("_client", "_is_known", "durability", "id")

    def __init__(
        self, client: AsyncClient, request_id: str, *, is_known: bool = False, durability: Durability | None = None
    ) -> None:
        self.id = request_id
        self.durability = durability
        self._client = client
        self._is_known = is_known

    def __repr__(self) -> str:
        return f"AsyncJob({self.id!r})"

    async def stream(self, after: str | None = None, *, timeout: float | None = None) -> AsyncIterator[Delta]:  # noqa: ASYNC109 (the same argument as Job.stream)
        follower = self._follower(after, timeout)
        async for delta in self._client._follow(follower):
            yield delta
        if follower.completion is not None:  # None: it was over before `after`
            _final(follower.completion)

    async def result(self, timeout: float | None = None) -> Completion:  # noqa: ASYNC109 (as Job.result)
        follower = self._follower(None, timeout)
        async for _ in self._client._follow(follower):
            pass
        return _final(follower.completion)

    async def status(self) -> JobState:
        return _state(self.id, await self._client._inspect(self.id), self._client._core.keys)

    async def cancel(self) -> CancelReply:
        return await self._client._cancel(self.id)

    def _follower(self, after: str | None, timeout_s: float | None) -> Follower:
        return self._client._core.follower(self.id, after, timeout_s, is_known=self._is_known)


def _submissions(requests: Sequence[Mapping[str, object]]) -> list[Submission]:
    """Each validated, under its own id or a fresh one."""
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


def _accepted(submissions: Sequence[Submission], replies: Sequence[Sequence[SubmitReply]]) -> list[str]:
    flat = [reply for call in replies for reply in call]
    for submission, reply in zip(submissions, flat, strict=True):
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
