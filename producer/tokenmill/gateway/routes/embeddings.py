"""POST /v1/embeddings: not yet."""

from fastapi import APIRouter, Response

from tokenmill.gateway.auth import CallerOf
from tokenmill.gateway.errors import ApiError

router = APIRouter(prefix="/v1", tags=["embeddings"])


@router.post("/embeddings")
async def create_embeddings(caller: CallerOf) -> Response:
    message = "this service generates text and makes no embeddings"
    raise ApiError(404, message, code="not_supported")
