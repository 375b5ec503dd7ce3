"""/v1/batches: OpenAI's batches, executed by `tokenmill bulk worker`."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tokenmill.gateway.auth import CallerOf
from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.routes.files import MAX_EXPIRY_S, MIN_EXPIRY_S, found
from tokenmill.gateway.state import GatewayOf
from tokenmill.wire.errors import InvalidRequestError

if TYPE_CHECKING:
    from tokenmill.gateway.batches.record import BatchRecord

router = APIRouter(prefix="/v1", tags=["batches"])

MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class OutputExpiry(BaseModel):
    """After so long the output and error files are deleted."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=MIN_EXPIRY_S, le=MAX_EXPIRY_S)


class BatchBody(BaseModel):
    """Strict, so that a number is no string; OpenAI's own unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions"]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    output_expires_after: OutputExpiry | None = None


@router.post("/batches")
def create_batch(body: BatchBody, gateway: GatewayOf, caller: CallerOf) -> dict[str, Any]:
    """Answered at once as `validating`; what is wrong with the input's lines is told by the batch itself."""
    from tokenmill.gateway.batches.office import Wish

    source = found(gateway.desk.shelf, body.input_file_id, caller.tenant, param="input_file_id")
    if source.purpose != "batch":
        message = f"a batch's input has the purpose 'batch', this file's is {source.purpose!r}"
        raise ApiError(400, message, param="input_file_id", code="invalid_file_purpose")
    wish = Wish(
        owner=caller.tenant,
        queue=caller.queue or gateway.settings.queue,
        endpoint=body.endpoint,
        completion_window=body.completion_window,
        metadata=body.metadata,
        output_expires_after_s=body.output_expires_after.seconds if body.output_expires_after else None,
    )
    return gateway.desk.office.create(source, wish).shown()


@router.get("/batches")
def list_batches(
    gateway: GatewayOf,
    caller: CallerOf,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    return gateway.desk.office.page(caller.tenant, after=after, limit=limit).shown(lambda record: record.shown())


@router.get("/batches/{batch_id}")
def retrieve_batch(batch_id: str, gateway: GatewayOf, caller: CallerOf) -> dict[str, Any]:
    return _found(gateway.desk.office.find(batch_id, caller.tenant), batch_id).shown()


@router.post("/batches/{batch_id}/cancel")
def cancel_batch(batch_id: str, gateway: GatewayOf, caller: CallerOf) -> dict[str, Any]:
    """What is finished by then stays, and is in the output file."""
    office = gateway.desk.office
    _found(office.find(batch_id, caller.tenant), batch_id)
    try:
        return office.cancel(batch_id).shown()
    except InvalidRequestError as error:
        raise ApiError(409, str(error), code="conflict") from error


def _found(record: "BatchRecord | None", batch_id: str) -> "BatchRecord":
    if record is None:
        raise ApiError(404, f"No batch found with id '{batch_id[:100]}'.", param="batch_id", code="not_found")
    return record
