"""POST /v1/chat/completions."""

from fastapi import APIRouter, Request, Response

from tokenmill.gateway.asking import answer, submit
from tokenmill.gateway.auth import CallerOf
from tokenmill.gateway.schemas.chat import ChatBody
from tokenmill.gateway.shapes.chat import ChatShape
from tokenmill.gateway.state import GatewayOf

router = APIRouter(prefix="/v1", tags=["chat"])


@router.post("/chat/completions")
async def create_chat_completion(body: ChatBody, request: Request, gateway: GatewayOf, caller: CallerOf) -> Response:
    is_streamed = bool(body.stream)
    ask = await submit(gateway, caller, request, body.fields(), is_streamed=is_streamed)
    shape = ChatShape(ask, n=body.n or 1, has_usage=body.has_usage)
    return await answer(request, ask, shape, is_streamed=is_streamed)
