"""Bodies that are too large or too slow, and requests that never begin: refused before they cost anything.

The size of a body is checked before it is read, and again as it comes. What the refused client still sends is read and
thrown away for a moment, since a connection that is closed with bytes unread takes the refusal with it.
"""

import asyncio
import contextlib
import json
import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.settings import GatewaySettings

LINGER_BYTES = 64 << 20
FORM_BYTES = 64 << 10  # of an upload, beside the file itself
MIN_BYTES_PER_S = 4_096  # of a body, once the time that every body has is over

_DIGITS = re.compile(rb"[0-9]{1,18}")


class BodyGuard:
    """ASGI middleware: 413 for a body beyond its limit, 408 for one that does not come."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self._limit(scope), self._settings.body_timeout_s)
        exchange = _Exchange(send, body)
        try:
            body.check_length(_length(scope))
            await self._app(scope, body.receive, exchange.send)
        except _BodyError as error:
            if exchange.has_begun:
                raise  # a response is under way: the connection is closed, which says enough
            await _refuse(error.answer, body, send, linger_s=self._settings.linger_s)

    def _limit(self, scope: Scope) -> int:
        if scope["path"] == "/v1/files":
            return self._settings.max_file_bytes + FORM_BYTES
        return self._settings.max_body_bytes


class _BodyError(Exception):
    """Passes through the application to the guard, whose it is."""

    def __init__(self, answer: ApiError) -> None:
        super().__init__(answer.message)
        self.answer = answer


class _Exchange:
    """Has the application begun to answer? It may not, once its body was refused, whatever it made of that."""

    def __init__(self, send: Send, body: "_Body") -> None:
        self._send = send
        self._body = body
        self.has_begun = False

    async def send(self, message: Message) -> None:
        if self._body.error is not None and not self.has_begun:
            raise self._body.error
        self.has_begun = True
        await self._send(message)


class _Body:
    """A request's body on its way in, watched."""

    def __init__(self, receive: Receive, max_bytes: int, timeout_s: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._begun_s = time.monotonic()
        self._num_bytes = 0
        self.is_whole = False
        self.error: _BodyError | None = None

    def check_length(self, length: int | None) -> None:
        if length is not None and length > self._max_bytes:
            raise _too_large(self._max_bytes)

    async def receive(self) -> Message:
        if self.is_whole:
            return await self._receive()  # whether the client is still there: that may take as long as it likes
        left_s = self._timeout_s + self._num_bytes / MIN_BYTES_PER_S - (time.monotonic() - self._begun_s)
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, left_s))
        except TimeoutError:
            self.error = _too_slow()
            raise self.error from None
        self._num_bytes += len(message.get("body", b""))
        self.is_whole = not message.get("more_body", False)
        if self._num_bytes > self._max_bytes:
            self.error = _too_large(self._max_bytes)
            raise self.error
        return message

    async def discard(self) -> None:
        """What still comes, for a moment."""
        num_bytes = 0
        while not self.is_whole and num_bytes < LINGER_BYTES:
            message = await self._receive()
            num_bytes += len(message.get("body", b""))
            self.is_whole = not message.get("more_body", False)


async def _refuse(answer: ApiError, body: _Body, send: Send, *, linger_s: float) -> None:
    """The whole answer at once; its end, with which the connection is closed, after the client's last byte."""
    content = json.dumps(answer.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), "connection": "close"}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": encoded})
    await send({"type": "http.response.body", "body": content, "more_body": True})
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(body.discard(), linger_s)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _whole_answer(answer: ApiError) -> bytes:
    content = json.dumps(answer.body()).encode()
    head = f"HTTP/1.1 {answer.status} Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


def _length(scope: Scope) -> int | None:
    found = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return int(found) if _DIGITS.fullmatch(found) else None


def _too_large(limit: int) -> _BodyError:
    return _BodyError(ApiError(413, f"the body is larger than {limit:,} bytes", code="request_too_large"))


def _too_slow() -> _BodyError:
    return _BodyError(ApiError(408, "the body did not come in time: send it again", code="request_timeout"))


def guarded(protocol: type[HttpToolsProtocol], head_timeout_s: float) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, with a limit for how long the head of a request may take. It has none by itself."""

    class GuardedProtocol(protocol):  # type: ignore[misc,valid-type]  # the class is given
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._expect_head()

        def data_received(self, data: bytes) -> None:
            cycle = self.cycle
            if self._head_timer is None and (cycle is None or cycle.response_complete):
                self._expect_head()
            super().data_received(data)
            if self.cycle is not cycle:
                self._forget_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_head()
            super().connection_lost(exc)

        def on_headers_complete(self) -> None:
            if self.parser.get_http_version() == "1.1" and not any(name == b"host" for name, _ in self.headers):
                raise ValueError("no Host")  # RFC 9112, 3.2: a 400, which is what the parser makes of any error
            super().on_headers_complete()

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP, in the form of all other errors."""
            self.transport.write(_whole_answer(ApiError(400, msg, code="invalid_http")))
            self.transport.close()

        def _expect_head(self) -> None:
            self._head_timer = self.loop.call_later(head_timeout_s, self._give_up)

        def _forget_head(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _give_up(self) -> None:
            self._head_timer = None
            if not self.transport.is_closing():
                self.transport.close()

    return GuardedProtocol
