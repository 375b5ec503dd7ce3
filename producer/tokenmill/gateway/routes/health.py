"""GET /healthz and /readyz: for probes, without a key."""

from fastapi import APIRouter

from tokenmill.gateway.errors import SERVER, ApiError
from tokenmill.gateway.state import GatewayOf

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(gateway: GatewayOf) -> dict[str, str]:
    """The queue's server answers, and a worker lives."""
    statistics = await gateway.client.statistics()
    if not statistics.workers:
        raise ApiError(503, f"no worker on queue {statistics.queue!r}", kind=SERVER, code="no_worker")
    return {"status": "ready"}
