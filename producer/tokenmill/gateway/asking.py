"""From an accepted body to a submitted job, and from its result back to bytes. Every route that generates uses it."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastapi import Request, Response
from starlette.types import Receive

from tokenmill.client import AsyncJob
from tokenmill.follow import checked_entry_id, split_entry_id
from tokenmill.gateway.auth import Caller
from tokenmill.gateway.errors import SERVER, ApiError, failure
from tokenmill.gateway.limits import Charge, charge
from tokenmill.gateway.shapes.common import Opened, Shape, dump
from tokenmill.gateway.sse import EventStream, event
from tokenmill.gateway.state import Gateway
from tokenmill.tracing import carried
from tokenmill.wire.errors import InvalidRequestError, RequestFailedError, TokenmillError
from tokenmill.wire.messages import Completion, Delta, Usage, check_request_id

ID_HEADERS = ("idempotency-key", "x-request-id")  # the first that is there names the job
SETTLE_S = 3_600.0  # that a request has to end while nobody waits for it, before its charge stays what it is
CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody reads it

_ID_BYTES = 24  # an id is all that it takes to read an answer: it must not be guessed


class Asked(Protocol):
    """What an answer is made of: one job, or several that are answered together."""

    @property
    def gateway(self) -> Gateway: ...
    @property
    def id(self) -> str: ...
    @property
    def after(self) -> str | None: ...
    def news(self) -> AsyncIterator[list[Delta] | Completion]: ...
    @property
    def limit_headers(self) -> Mapping[str, str]: ...
    async def result(self) -> Completion: ...
    def detach(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Ask:
    """One request on its way: the job, and what of the HTTP request its answer repeats.

    `after`: the entry id after which a reconnecting client wants to go on. `is_kept`: the job goes on without a client.
    """

    gateway: Gateway
    job: AsyncJob
    model: str
    after: str | None = None
    is_kept: bool = False
    charge: Charge | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def id(self) -> str:
        return self.job.id

    def opened(self, num_choices: int) -> Opened:
        return Opened(self.id, self.model, self.created, num_choices)

    async def news(self) -> AsyncIterator[list[Delta] | Completion]:
        async for news in self.job.news():
            if isinstance(news, Completion):
                self.settle(news)
            yield news

    async def result(self) -> Completion:
        try:
            completion = await self.job.result()
        except RequestFailedError as error:
            self.settle(error.completion)
            raise
        self.settle(completion)
        return completion

    def detach(self) -> None:
        """The client is gone: so is its job, unless it was to be kept."""
        if not self.is_kept:
            self.gateway.spawn(self.job.cancel())
        self.settle_later()

    def settle(self, completion: Completion) -> None:
        """What the caller's limits were charged is corrected by what it took."""
        if self.charge is not None:
            self.gateway.spawn(self.charge.settle(completion.usage))

    def settle_later(self) -> None:
        """When nobody here waits for its answer; a gateway that ends meanwhile leaves what was charged."""
        if self.charge is not None:
            self.gateway.attempt(self._settle_when_final())

    async def _settle_when_final(self) -> None:
        with contextlib.suppress(TokenmillError):
            self.settle(await self.job.result(SETTLE_S))

    @property
    def limit_headers(self) -> Mapping[str, str]:
        return {} if self.charge is None else self.charge.headers


async def submit(
    gateway: Gateway, caller: Caller, request: Request, fields: Mapping[str, Any], *, is_streamed: bool
) -> Ask:
    """`fields` as `AsyncClient.submit` takes them, options side by side with the rest."""
    (ask,) = await submit_all(gateway, caller, request, [fields], is_streamed=is_streamed)
    return ask


async def submit_all(
    gateway: Gateway, caller: Caller, request: Request, bodies: Sequence[Mapping[str, Any]], *, is_streamed: bool
) -> list[Ask]:
    """Several that are answered together, under ids that follow from one."""
    bodies = [caller.fenced(fields) for fields in bodies]
    queue = gateway.queue(caller.queue)
    model = await queue.models.check(bodies[0].get("model"))
    request_id = given_id(caller, request) or bodies[0].get("id") or caller.request_id(secrets.token_hex(_ID_BYTES))
    ids = [request_id] if len(bodies) == 1 else [f"{request_id}.{number}" for number in range(len(bodies))]
    trace = {"traceparent": carried(request.headers)}
    style = {"stream": "delta" if is_streamed else "final"}
    asked = [{**trace, **fields, **style, "id": one} for fields, one in zip(bodies, ids, strict=True)]
    after = last_event_id(request)
    charges: list[Charge | None] = []
    try:
        for fields in asked:
            charges.append(await charge(gateway.keys, caller, fields))  # noqa: PERF401 (what is charged is given back)
        jobs = await queue.client.submit_many(asked)
    except (TokenmillError, ApiError):
        for charged in filter(None, charges):
            gateway.spawn(charged.settle(Usage()))  # nothing was queued
        raise
    is_kept = bodies[0].get("on_detach", "cancel") == "continue" or "idempotency-key" in request.headers
    return [Ask(gateway, job, model, after, is_kept, charged) for job, charged in zip(jobs, charges, strict=True)]


def given_id(caller: Caller, request: Request) -> str | None:
    """The queue's id for the one that a client gave in a header."""
    name = next((name for name in ID_HEADERS if name in request.headers), None)
    if name is None:
        return None
    try:
        return caller.request_id(check_request_id(request.headers[name]))
    except InvalidRequestError as error:
        raise ApiError(400, f"the header {name}: {error}", param=name, code=error.code) from None


def last_event_id(request: Request) -> str | None:
    """Where a client that reconnects wants to go on; it may be in the address, for who cannot set headers."""
    given = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
    try:
        return checked_entry_id(given) if given else None
    except InvalidRequestError:
        raise ApiError(
            400, "Last-Event-ID is the `id` of an event of this stream, as in 17-0", param="Last-Event-ID"
        ) from None


async def answer(request: Request, ask: Asked, shape: Shape, *, is_streamed: bool) -> Response:
    """The response, streamed or in one piece; the job is cancelled when the client goes."""
    headers = {"X-Request-Id": ask.id, **ask.limit_headers}
    if is_streamed:
        return event_stream(ask, events(ask, shape), headers)
    completion = await wait_result(ask, request.receive)
    if completion is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Response(dump(shape.whole(completion)), media_type="application/json", headers=headers)


def event_stream(ask: Asked, written: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> EventStream:
    settings = ask.gateway.settings
    return EventStream(
        written,
        tell=lambda error: event(dump(error.body())),
        on_detach=ask.detach,
        keep_alive_s=settings.keep_alive_s,
        early_error_s=settings.early_error_s,
        headers=headers,
    )


async def events(ask: Asked, shape: Shape) -> AsyncGenerator[bytes, None]:
    """The whole stream, or what of it comes after `ask.after`; ApiError: its final word is an error.

    It is read from its start also for who was there before: what the shape tells may depend on what it told.
    """
    seen = _Seen(ask.after)
    head = shape.opening() if ask.after is None else b""
    async for news in ask.news():
        if isinstance(news, Completion):
            yield head + shape.ending(checked(news), seen.end, is_told=seen.has(seen.end))
        elif written := _deltas(shape, _current(news, seen), seen):
            yield head + written
            head = b""


class _Seen:
    """How far the client is, and how far we are."""

    def __init__(self, after: str | None) -> None:
        self._after = None if after is None else split_entry_id(after)
        self._last = ""
        self.has_any = after is not None

    def has(self, entry_id: str) -> bool:
        return self._after is not None and split_entry_id(entry_id or "0-0") <= self._after

    def pass_by(self, entry_id: str) -> None:
        self._last, self.has_any = entry_id, True

    @property
    def end(self) -> str:
        """The id of the terminal entry, which stands behind the last delta; empty where deltas have none."""
        return self._last and f"{self._last.partition('-')[0]}-1"


def _current(deltas: list[Delta], seen: _Seen) -> list[Delta]:
    """Without what another model version said before it had to start again; ApiError: the client has some of that."""
    start = max((number for number, delta in enumerate(deltas) if delta.is_restart), default=0)
    if deltas[start].is_restart and seen.has_any:
        message = "another version of the model took this request over and started it again: ask again"
        raise ApiError(500, message, kind=SERVER, code="restarted")
    return deltas[start:]


def _deltas(shape: Shape, deltas: list[Delta], seen: _Seen) -> bytes:
    written = []
    for delta in deltas:
        if seen.has(delta.entry_id):
            shape.skip(delta)
        else:
            written.append(shape.delta(delta))
        seen.pass_by(delta.entry_id)
    return b"".join(written)


def checked(completion: Completion) -> Completion:
    """The completion itself, unless its final word is an error."""
    if completion.error is not None:
        raise failure(completion.error.code, completion.error.message)
    return completion


async def wait_result(ask: Asked, receive: Receive) -> Completion | None:
    """None: the client went away."""
    waiting = asyncio.ensure_future(ask.result())
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((waiting, watching), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        ask.detach()
        return None
    finally:
        waiting.cancel()
        watching.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
