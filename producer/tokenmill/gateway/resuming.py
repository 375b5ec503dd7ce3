"""Answers of requests that were sent before, by their ids: whichever gateway process took them. Knows no shape."""

from fastapi import Request as HttpRequest

from tokenmill.gateway.asking import Ask, last_event_id
from tokenmill.gateway.auth import Caller
from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.state import Gateway
from tokenmill.wire.errors import InvalidRequestError
from tokenmill.wire.messages import Request, check_request_id
from tokenmill.wire.store.notes import recall

EVENT_STREAM = "text/event-stream"


async def find(gateway: Gateway, caller: Caller, request: HttpRequest, given: str, prefix: str) -> tuple[Ask, Request]:
    """`given`: the id as an answer has it, or the queue's. ApiError 404: not there, not yours, or forgotten.

    Who follows it this way may leave without a trace: the job goes on.
    """
    request_id = given.removeprefix(prefix)
    queue = gateway.queue(caller.queue)
    try:
        check_request_id(request_id)
    except InvalidRequestError:
        raise _unknown(given) from None
    noted = await queue.client.perform(request_id, lambda keys: recall(keys, request_id))
    if noted.state is None or not caller.owns(request_id):
        raise _unknown(given)
    asked = Request.decode(noted.body)
    model = await queue.models.check(None) if asked.model is None else asked.model
    return Ask(gateway, queue.client.job(request_id), model, last_event_id(request), is_kept=True), asked


def wants_stream(request: HttpRequest, *, stream: bool) -> bool:
    """A browser's EventSource can say it by its Accept header alone."""
    return stream or EVENT_STREAM in request.headers.get("accept", "")


def _unknown(given: str) -> ApiError:
    message = f"there is no answer {given[:200]!r} here; answers are kept for their result_ttl_s only"
    return ApiError(404, message, code="not_found")
