"""Server-sent events: how they are written, kept alive and ended when the client goes. Knows no OpenAI."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from fastapi import Response
from starlette.types import Message, Receive, Scope, Send

from tokenmill.gateway.errors import ApiError, api_error
from tokenmill.wire.errors import TokenmillError

DONE = b"[DONE]"
KEEP_ALIVE = b": keep-alive\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx would hold events back


def event(data: bytes, entry_id: str = "", *, name: str | None = None) -> bytes:
    """One event; `data` is one line. Who reconnects sends the last `entry_id` that it got as Last-Event-ID."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    if entry_id:
        head += b"id: " + entry_id.encode() + b"\n"
    return head + b"data: " + data + b"\n\n"


class EventStream(Response):
    """Sends what `events` yields (each any number of whole events) until it ends or the client goes away.

    What fails before the first event, and within `early_error_s`, is raised, and so answered with its own status; what
    fails later is told by an event that `tell` writes. `on_detach` is called when the client went before the end; it
    must not wait.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        tell: Callable[[ApiError], bytes],
        on_detach: Callable[[], None],
        keep_alive_s: float,
        early_error_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(None, headers={**_HEADERS, **(headers or {})}, media_type=self.media_type)
        del self.headers["content-length"]
        self._events = events
        self._tell = tell
        self._on_detach = on_detach
        self._patience_s = (early_error_s, keep_alive_s)
        self._has_started = False
        self._is_idle = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        watching = asyncio.ensure_future(self._watch(receive, send))
        try:
            await asyncio.wait((sending, watching), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, watching):
                task.cancel()
            outcome, _ = await asyncio.gather(sending, watching, return_exceptions=True)
            if isinstance(outcome, asyncio.CancelledError | OSError):
                self._on_detach()
        if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
            raise outcome

    async def _send(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            try:
                async for chunk in events:
                    self._is_idle = False
                    await self._start(send)
                    await send(_part(chunk))
            except (ApiError, TokenmillError) as error:
                if not self._has_started:
                    raise
                await send(_part(self._tell(error if isinstance(error, ApiError) else api_error(error))))
        await self._start(send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, send: Send) -> None:
        if not self._has_started:
            self._has_started = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

    async def _watch(self, receive: Receive, send: Send) -> None:
        """Until the client is gone; meanwhile a comment now and then, so that nobody between takes us for dead."""
        patience_s, keep_alive_s = self._patience_s
        while True:
            try:
                message = await asyncio.wait_for(receive(), patience_s)
            except TimeoutError:
                patience_s = keep_alive_s
                await self._start(send)
                if self._is_idle:
                    await send(_part(KEEP_ALIVE))
                self._is_idle = True
            else:
                if message["type"] == "http.disconnect":
                    return


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}
