"""/fleet: what the page at / shows, for it and for other programs; and the one thing that it may change."""

import asyncio
import json
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from tokenmill.client import Client
from tokenmill.gateway.auth import Caller, CallerOf
from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.settings import GatewaySettings
from tokenmill.gateway.sse import EventStream, event
from tokenmill.gateway.state import GatewayOf
from tokenmill.mailbox import Mailbox, redrive

PAGE_HEADER = "x-tokenmill-page"  # no other site's page can send it: a browser would ask us first, and be refused
MOST_REDRIVEN = 100  # in one call

router = APIRouter(prefix="/fleet", tags=["fleet"], include_in_schema=False)


@router.get("/snapshot")
async def snapshot(gateway: GatewayOf, caller: CallerOf) -> dict[str, Any]:
    """Everything but pictures, once. Rates grow true with the second look."""
    look = await gateway.feed(caller.queue).look()
    return {**_about(gateway.settings, caller), "look": look.describe()}


@router.get("/events")
async def events(gateway: GatewayOf, caller: CallerOf) -> Response:
    """`about` once, then `look` each second and `pictures` four times a second, for as long as somebody reads."""
    about = event(json.dumps(_about(gateway.settings, caller)).encode(), name="about")

    async def told() -> Any:
        yield about
        async for chunk in gateway.feed(caller.queue).events():
            yield chunk

    return EventStream(
        told(),
        tell=lambda error: event(json.dumps(error.body()).encode(), name="error"),
        on_detach=lambda: None,
        keep_alive_s=gateway.settings.keep_alive_s,
        early_error_s=gateway.settings.early_error_s,
    )


def _about(settings: GatewaySettings, caller: Caller) -> dict[str, Any]:
    return {"queue": caller.queue or settings.queue, "can_redrive": settings.allow_admin}


def from_our_page(request: Request) -> None:
    """ApiError 403: a page of another site made the browser send this. Programs need the header, too."""
    origin, host = request.headers.get("origin"), request.headers.get("host")
    is_same_site = request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
    if PAGE_HEADER in request.headers and is_same_site and (origin is None or urlsplit(origin).netloc == host):
        return
    raise ApiError(403, f"this needs the header {PAGE_HEADER} and no other origin than our own", code="cross_origin")


class RedriveBody(BaseModel):
    """`names`: as /fleet/snapshot has them."""

    model_config = ConfigDict(extra="forbid")
    names: list[str] = Field(min_length=1, max_length=MOST_REDRIVEN)


@router.post("/dead-letters/redrive")
async def redrive_letters(
    body: RedriveBody, gateway: GatewayOf, caller: CallerOf, _: Annotated[None, Depends(from_our_page)]
) -> dict[str, Any]:
    """Ask again what these dead letters tell of, each under a new id. 404: one of them is not there any more."""
    if not gateway.settings.allow_admin:
        raise ApiError(403, "this gateway only shows: start it with --allow-admin to redrive", code="not_allowed")
    queue = caller.queue or gateway.settings.queue
    return {"letters": await asyncio.to_thread(_redrive, gateway.settings, queue, body.names)}


def _redrive(settings: GatewaySettings, queue: str, names: list[str]) -> list[dict[str, str | None]]:
    where = (settings.redis_url, queue, settings.partitions)
    with Mailbox(*where) as mailbox, Client(*where) as client:
        letters = {mailbox.name(letter): letter for letter in mailbox.letters()}
        if missing := [name for name in names if name not in letters]:
            raise ApiError(404, f"no such dead letter: {', '.join(missing)}", code="not_found")
        return [redrive(mailbox, client, letters[name]) for name in names]
