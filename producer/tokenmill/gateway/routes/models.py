"""GET /v1/models: what the workers serve."""

from typing import Any

from fastapi import APIRouter

from tokenmill.gateway.auth import CallerOf
from tokenmill.gateway.models import ServedModel, unknown_model
from tokenmill.gateway.state import GatewayOf

router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models")
async def list_models(gateway: GatewayOf, caller: CallerOf) -> dict[str, Any]:
    served = await gateway.queue(caller.queue).models.served()
    return {"object": "list", "data": [_model(model) for model in served.values()]}


@router.get("/models/{model_id:path}")
async def retrieve_model(model_id: str, gateway: GatewayOf, caller: CallerOf) -> dict[str, Any]:
    served = await gateway.queue(caller.queue).models.served()
    if model_id not in served:
        raise unknown_model(model_id)
    return _model(served[model_id])


def _model(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "tokenmill",
        "max_model_len": model.max_model_len,
    }
