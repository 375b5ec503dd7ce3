"""/v1/chat/completions: ask, and read again what was asked before."""

from fastapi import APIRouter, Request, Response

from tokenmill.gateway.asking import answer, submit
from tokenmill.gateway.auth import CallerOf
from tokenmill.gateway.resuming import find, wants_stream
from tokenmill.gateway.schemas.chat import ChatBody
from tokenmill.gateway.shapes.chat import ChatShape
from tokenmill.gateway.state import GatewayOf

router = APIRouter(prefix="/v1/chat/completions", tags=["chat"])


@router.post("")
async def create_chat_completion(body: ChatBody, request: Request, gateway: GatewayOf, caller: CallerOf) -> Response:
    is_streamed = bool(body.stream)
    ask = await submit(gateway, caller, request, body.fields(), is_streamed=is_streamed)
    shape = ChatShape(ask.opened(body.n or 1), has_usage=body.has_usage)
    return await answer(request, ask, shape, is_streamed=is_streamed)


@router.get("/{completion_id}")
async def read_chat_completion(
    completion_id: str, request: Request, gateway: GatewayOf, caller: CallerOf, stream: bool = False
) -> Response:
    """Waits for its end; with `stream=true`, from its start or from after Last-Event-ID on."""
    ask, asked = await find(gateway, caller, request, completion_id, "chatcmpl-")
    shape = ChatShape(ask.opened(asked.sampling.n or 1), has_usage=True)
    return await answer(request, ask, shape, is_streamed=wants_stream(request, stream=stream))
