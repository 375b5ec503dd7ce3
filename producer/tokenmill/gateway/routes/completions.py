"""/v1/completions: ask, and read again what was asked before."""

from fastapi import APIRouter, Request, Response

from tokenmill.gateway.asking import Asked, answer, submit_all
from tokenmill.gateway.auth import CallerOf
from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.resuming import find, wants_stream
from tokenmill.gateway.schemas.completions import CompletionBody
from tokenmill.gateway.several import Several
from tokenmill.gateway.shapes.completions import CompletionShape
from tokenmill.gateway.state import GatewayOf

router = APIRouter(prefix="/v1/completions", tags=["completions"])


@router.post("")
async def create_completion(body: CompletionBody, request: Request, gateway: GatewayOf, caller: CallerOf) -> Response:
    is_streamed = bool(body.stream)
    bodies, echoes = body.bodies(), body.echoes()
    if len(bodies) > 1 and "last-event-id" in request.headers:
        message = "a stream of several prompts cannot be resumed: ask for each of them alone"
        raise ApiError(400, message, param="Last-Event-ID", code="unsupported_field")
    asks = await submit_all(gateway, caller, request, bodies, is_streamed=is_streamed)
    n = body.n or 1
    ask: Asked = asks[0]
    opened = asks[0].opened(n)
    if len(asks) > 1:
        ask = several = Several(asks, asks[0].id.rpartition(".")[0], n)
        opened = several.opened()
    shape = CompletionShape(opened, has_usage=body.has_usage, echoes=echoes)
    return await answer(request, ask, shape, is_streamed=is_streamed)


@router.get("/{completion_id}")
async def read_completion(
    completion_id: str, request: Request, gateway: GatewayOf, caller: CallerOf, stream: bool = False
) -> Response:
    """Waits for its end; with `stream=true`, from its start or from after Last-Event-ID on."""
    ask, asked = await find(gateway, caller, request, completion_id, "cmpl-")
    shape = CompletionShape(ask.opened(asked.sampling.n or 1), has_usage=True)
    return await answer(request, ask, shape, is_streamed=wants_stream(request, stream=stream))
