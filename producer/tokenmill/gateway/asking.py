"""From an accepted body to a submitted job, and from its result back to bytes. Every route that generates uses it."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastapi import Request, Response
from starlette.types import Receive

from tokenmill.client import AsyncJob
from tokenmill.gateway.auth import Caller
from tokenmill.gateway.errors import failure
from tokenmill.gateway.limits import Charge, charge
from tokenmill.gateway.sse import EventStream, event
from tokenmill.gateway.state import Gateway
from tokenmill.tracing import carried
from tokenmill.wire.errors import TokenmillError
from tokenmill.wire.messages import Completion, Delta, Usage

DONE = b"[DONE]"
ID_HEADERS = ("idempotency-key", "x-request-id")  # the first that is there names the job
SETTLE_S = 3_600.0  # that a request has to end while nobody waits for it, before its charge stays what it is
CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody reads it


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

    def detach(self) -> None:
        """The client is gone: so is its job, unless it was to be kept."""
        if not self.is_kept:
            self.gateway.spawn(self.job.cancel())
        self.settle_later()

    def settle(self, completion: Completion | None) -> None:
        """What the caller's limits were charged is corrected by what it took."""
        if self.charge is not None and completion is not None:
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


class Shape(Protocol):
    """How one endpoint writes an answer. Each method gives whole events; `whole` the body of an answer in one piece."""

    def opening(self) -> bytes: ...
    def deltas(self, deltas: list[Delta]) -> bytes: ...
    def ending(self, completion: Completion | None) -> bytes: ...
    def whole(self, completion: Completion) -> dict[str, Any]: ...


async def submit(
    gateway: Gateway, caller: Caller, request: Request, fields: Mapping[str, Any], *, is_streamed: bool
) -> Ask:
    """`fields` as `AsyncClient.submit` takes them, options side by side with the rest."""
    fields = caller.fenced(fields)
    queue = gateway.queue(caller.queue)
    model = await queue.models.check(fields.get("model"))
    asked = {"traceparent": carried(request.headers), **fields, "stream": "delta" if is_streamed else "final"}
    if (given := given_id(caller, request)) is not None:
        asked["id"] = given
    charged = await charge(gateway.keys, caller, asked)
    try:
        (job,) = await queue.client.submit_many([asked])
    except TokenmillError:
        if charged is not None:
            gateway.spawn(charged.settle(Usage()))  # nothing was queued
        raise
    is_kept = fields.get("on_detach", "cancel") == "continue" or "idempotency-key" in request.headers
    return Ask(gateway, job, model, request.headers.get("last-event-id"), is_kept, charged)


def given_id(caller: Caller, request: Request) -> str | None:
    """The queue's id for the one that a client gave in a header."""
    given = next((request.headers[name] for name in ID_HEADERS if name in request.headers), None)
    return None if given is None else caller.request_id(given)


async def answer(request: Request, ask: Ask, shape: Shape, *, is_streamed: bool) -> Response:
    """The response, streamed or in one piece; cancels the job when the client goes."""
    headers = {"X-Request-Id": ask.job.id, **ask.limit_headers}
    if is_streamed:
        return event_stream(ask, events(ask, shape), headers)
    completion = await wait_result(ask, request.receive)
    if completion is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Response(dump(shape.whole(completion)), media_type="application/json", headers=headers)


def event_stream(ask: Ask, written: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> EventStream:
    settings = ask.gateway.settings
    return EventStream(
        written,
        tell=lambda error: event(dump(error.body())),
        on_detach=ask.detach,
        keep_alive_s=settings.keep_alive_s,
        early_error_s=settings.early_error_s,
        headers=headers,
    )


async def events(ask: Ask, shape: Shape) -> AsyncGenerator[bytes, None]:
    """The whole stream, or what of it comes after `ask.after`; ApiError: its final word is an error."""
    head = shape.opening() if ask.after is None else b""
    completion: Completion | None = None
    async for news in ask.job.news(ask.after):
        if isinstance(news, Completion):
            completion = checked(news)
        else:
            yield head + shape.deltas(news)
            head = b""
    ask.settle(completion)
    yield head + shape.ending(completion)


def checked(completion: Completion) -> Completion:
    """The completion itself, unless its final word is an error."""
    if completion.error is not None:
        raise failure(completion.error.code, completion.error.message)
    return completion


async def wait_result(ask: Ask, receive: Receive) -> Completion | None:
    """None: the client went away."""
    waiting = asyncio.ensure_future(ask.job.result())
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((waiting, watching), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            ask.settle(waiting.result())
            return waiting.result()
        ask.detach()
        return None
    finally:
        waiting.cancel()
        watching.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
