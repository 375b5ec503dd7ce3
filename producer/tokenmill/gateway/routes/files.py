"""/v1/files: uploads for batches, and what batches wrote."""

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from tokenmill.gateway.auth import CallerOf
from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.shelf import Draft, FileShelf, StoredFile
from tokenmill.gateway.state import GatewayOf
from tokenmill.gateway.upload import UploadError, UploadForm, UploadTooLargeError

MIN_EXPIRY_S, MAX_EXPIRY_S = 3_600, 30 * 86_400  # OpenAI's

router = APIRouter(prefix="/v1", tags=["files"])

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": MIN_EXPIRY_S,
                            "maximum": MAX_EXPIRY_S,
                        },
                    },
                }
            }
        },
    }
}


@router.post("/files", openapi_extra=_FORM)
async def create_file(request: Request, gateway: GatewayOf, caller: CallerOf) -> dict[str, Any]:
    """Streamed to disk as it comes; on disk when it is answered."""
    shelf = gateway.desk.shelf
    draft = await run_in_threadpool(shelf.draft)
    try:
        form = await _received(request, draft, gateway.settings.max_file_bytes)
        expires_after_s = _checked(form.fields)
        stored = await run_in_threadpool(
            shelf.keep,
            draft,
            filename=form.filename or "",
            purpose="batch",
            owner=caller.tenant,
            expires_after_s=expires_after_s,
        )
    except UploadTooLargeError as error:
        raise ApiError(413, str(error), param=error.param, code="file_too_large") from error
    except UploadError as error:
        raise ApiError(400, str(error), param=error.param, code="invalid_upload") from error
    finally:
        await run_in_threadpool(draft.discard)
    return stored.shown()


@router.get("/files")
def list_files(
    gateway: GatewayOf,
    caller: CallerOf,
    purpose: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    page = gateway.desk.shelf.page(
        caller.tenant, purpose=purpose, after=after, limit=limit, is_newest_first=order == "desc"
    )
    return page.shown(StoredFile.shown)


@router.get("/files/{file_id}")
def retrieve_file(file_id: str, gateway: GatewayOf, caller: CallerOf) -> dict[str, Any]:
    return found(gateway.desk.shelf, file_id, caller.tenant).shown()


@router.get("/files/{file_id}/content")
def retrieve_file_content(file_id: str, gateway: GatewayOf, caller: CallerOf) -> FileResponse:
    shelf = gateway.desk.shelf
    stored = found(shelf, file_id, caller.tenant)
    path = shelf.content(stored)
    if not path.exists():
        raise _missing(file_id)
    return FileResponse(path, media_type="application/octet-stream", filename=stored.filename)


@router.delete("/files/{file_id}")
def delete_file(file_id: str, gateway: GatewayOf, caller: CallerOf) -> dict[str, Any]:
    """A batch that was created from it goes on: it has a name of its own for the content."""
    shelf = gateway.desk.shelf
    shelf.delete(found(shelf, file_id, caller.tenant))
    return {"id": file_id, "object": "file", "deleted": True}


def found(shelf: FileShelf, file_id: str, tenant: str, *, param: str = "id") -> StoredFile:
    """ApiError 404, also for a file of somebody else."""
    stored = shelf.find(file_id, tenant)
    if stored is None:
        raise _missing(file_id, param=param)
    return stored


def _missing(file_id: str, *, param: str = "id") -> ApiError:
    return ApiError(404, f"No such File object: {file_id[:100]}", param=param, code="not_found")


async def _received(request: Request, draft: Draft, max_bytes: int) -> UploadForm:
    form = UploadForm(request.headers.get("content-type", ""), draft.write, max_bytes=max_bytes)
    try:
        async for chunk in request.stream():
            form.feed(chunk)
            if draft.is_due:
                await run_in_threadpool(draft.flush)
    except ClientDisconnect as error:
        raise UploadError("the upload was cut off") from error
    form.finish()
    return form


def _checked(fields: dict[str, str]) -> int | None:
    """Seconds after which the file is deleted; None: never. UploadError."""
    if "purpose" not in fields:
        raise UploadError("the field 'purpose' is missing: it is 'batch'", "purpose")
    if fields["purpose"] != "batch":
        raise UploadError("files are kept for the purpose 'batch' alone", "purpose")
    return expiry_of(fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]"), "expires_after")


def expiry_of(anchor: object, seconds: object, param: str) -> int | None:
    """UploadError: not of the form that OpenAI knows."""
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise UploadError("the only anchor is 'created_at'", f"{param}.anchor")
    is_number = re.fullmatch(r"[0-9]{1,9}", str(seconds)) is not None
    if not is_number or not MIN_EXPIRY_S <= int(str(seconds)) <= MAX_EXPIRY_S:
        raise UploadError(f"between {MIN_EXPIRY_S} and {MAX_EXPIRY_S} seconds", f"{param}.seconds")
    return int(str(seconds))
