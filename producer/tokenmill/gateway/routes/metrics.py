"""GET /metrics: for Prometheus, without a key. docs/observability.md lists what it tells."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from tokenmill.gateway.state import GatewayOf
from tokenmill.wire.errors import TokenmillError

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=Response)
async def metrics(request: Request, gateway: GatewayOf) -> Response:
    """Also while the queue's server is away: that is when somebody looks."""
    try:
        statistics = await gateway.client.statistics()
    except TokenmillError:
        statistics = None
    text = request.app.state.metrics.text(gateway.settings.queue, statistics)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
