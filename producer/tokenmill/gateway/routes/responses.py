"""/v1/responses: create, retrieve, stream from anywhere, cancel, delete. What outlives a request is in Redis alone."""

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from tokenmill.client import AsyncClient, AsyncJob
from tokenmill.gateway.asking import CLIENT_CLOSED_REQUEST, Ask, checked, given_id, submit, wait_result
from tokenmill.gateway.auth import Caller, CallerOf
from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.responses import keeping
from tokenmill.gateway.responses.events import Event, ResponseEvents
from tokenmill.gateway.responses.view import PREFIX, Asked, final_outcome, item_id, response_object
from tokenmill.gateway.schemas.responses import ResponseBody
from tokenmill.gateway.shapes.common import dump
from tokenmill.gateway.sse import EventStream, event
from tokenmill.gateway.state import Gateway, GatewayOf
from tokenmill.wire.errors import InvalidRequestError
from tokenmill.wire.messages import Completion, check_request_id

router = APIRouter(prefix="/v1/responses", tags=["responses"])

_ID_BYTES = 24  # an id is all that it takes to read an answer: it must not be guessed
_NUMBER = r"(0|[1-9][0-9]{0,15})"


@router.post("")
async def create_response(body: ResponseBody, request: Request, gateway: GatewayOf, caller: CallerOf) -> Response:
    body.check()
    queue = gateway.queue(caller.queue)
    fields = body.request_fields(await _history(queue.client, caller, body.previous_response_id))
    asked = body.asked(await queue.models.check(body.model), int(time.time()))
    request_id = given_id(caller, request) or caller.request_id(secrets.token_hex(_ID_BYTES))
    asked = await keeping.note(queue.client, request_id, asked, result_ttl_s=body.result_ttl_s)
    is_streamed = body.is_streamed or asked.background
    ask = await submit(gateway, caller, request, {**fields, "id": request_id}, is_streamed=is_streamed)
    if is_streamed:
        ask.settle_later()
    if body.is_streamed:
        return _stream(gateway, ask.job, asked, on_detach=_detach(queue.client, ask))
    if asked.background:
        return _answer((await keeping.find(queue.client, request_id)).fields())
    return await _whole(request, ask, asked)


@router.get("/{response_id}")
async def retrieve_response(
    response_id: str,
    gateway: GatewayOf,
    caller: CallerOf,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=0)] = None,
    last_event_id: Annotated[str | None, Header(pattern=_NUMBER)] = None,
) -> Response:
    client, request_id = gateway.queue(caller.queue).client, _request_id(caller, response_id)
    kept = await keeping.find(client, request_id)
    if not stream:
        return _answer(kept.fields())
    if not kept.is_final:
        await keeping.keep(client, request_id)
    after = int(last_event_id) if last_event_id is not None else -1 if starting_after is None else starting_after
    return _stream(gateway, client.job(request_id), kept.asked, after=after)


@router.post("/{response_id}/cancel")
async def cancel_response(response_id: str, gateway: GatewayOf, caller: CallerOf) -> Response:
    kept = await keeping.cancel(gateway.queue(caller.queue).client, _request_id(caller, response_id))
    return _answer(kept.fields())


@router.delete("/{response_id}")
async def delete_response(response_id: str, gateway: GatewayOf, caller: CallerOf) -> Response:
    await keeping.delete(gateway.queue(caller.queue).client, _request_id(caller, response_id))
    return _answer({"id": response_id, "object": "response", "deleted": True})


async def _history(client: AsyncClient, caller: Caller, previous: str | None) -> list[keeping.Turn]:
    if previous is None:
        return []
    try:
        request_id = _request_id(caller, previous)
    except ApiError as error:
        raise keeping.no_predecessor(previous, "not_found", "is not there, or its time is over") from error
    return await keeping.find_turns(client, request_id)


def _request_id(caller: Caller, response_id: str) -> str:
    """The queue's id, or ApiError 404 for what is no response of this caller's."""
    request_id = response_id.removeprefix(PREFIX)
    try:
        check_request_id(request_id)
    except InvalidRequestError:
        raise keeping.not_found(response_id) from None
    if not response_id.startswith(PREFIX) or not caller.owns(request_id):
        raise keeping.not_found(response_id)
    return request_id


async def _whole(request: Request, ask: Ask, asked: Asked) -> Response:
    """The answer in one piece, unless its client goes away before."""
    completion = await wait_result(ask, request.receive)
    if completion is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    outcome = final_outcome(checked(completion), item_id(ask.job.id), asked.created_at)
    return _answer(response_object(ask.job.id, asked, outcome))


def _answer(fields: dict[str, Any]) -> Response:
    return Response(dump(fields), media_type="application/json")


def _detach(client: AsyncClient, ask: Ask) -> Callable[[], None]:
    """What becomes of the job when the client that created it goes away."""
    if ask.is_kept:
        return _nothing
    return lambda: ask.gateway.spawn(keeping.cancel_unless_kept(client, ask.job.id))


def _nothing() -> None:
    """Who only looks on leaves without a trace."""


def _stream(
    gateway: Gateway,
    job: AsyncJob,
    asked: Asked,
    *,
    after: int = -1,
    on_detach: Callable[[], None] = _nothing,
) -> Response:
    settings = gateway.settings
    events = ResponseEvents(job.id, asked, after=after)
    return EventStream(
        _written(job, events),
        tell=lambda error: _error_event(error, events.next_number),
        on_detach=on_detach,
        keep_alive_s=settings.keep_alive_s,
        early_error_s=settings.early_error_s,
        headers={"X-Request-Id": job.id},
    )


async def _written(job: AsyncJob, events: ResponseEvents) -> AsyncGenerator[bytes, None]:
    yield _bytes(events.opening())
    async for news in job.news():
        if isinstance(news, Completion):
            yield _bytes(events.end(news))
        else:
            yield b"".join([_bytes(events.add(delta)) for delta in news])


def _bytes(events: Iterable[Event]) -> bytes:
    return b"".join([event(told.data.encode(), str(told.sequence_number), name=told.type) for told in events])


def _error_event(error: ApiError, number: int) -> bytes:
    """Without an id: who comes back asks again from the last event that was one."""
    fields = {"type": "error", "sequence_number": number, "code": error.code, "message": error.message}
    return event(dump({**fields, "param": error.param}), name="error")
