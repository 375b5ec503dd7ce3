"""Many clients of server-sent events in one process, cheap enough to measure a server by. Knows no endpoint's fields.

A client is a connection of its own, a request and what came back: when each event arrived, and its id and data.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import httptools


@dataclass(slots=True)
class Streamed:
    """What one client got. Times in seconds since it asked; `status` 0: no answer at all."""

    status: int = 0
    events: list[tuple[str, bytes]] = field(default_factory=list)  # id, data
    times_s: list[float] = field(default_factory=list)
    is_whole: bool = False

    @property
    def last_id(self) -> str | None:
        return next((name for name, _ in reversed(self.events) if name), None)

    def decoded(self) -> list[dict[str, Any]]:
        """The data of every event but a last [DONE]."""
        return [json.loads(data) for _, data in self.events if data != b"[DONE]"]


class _Client(asyncio.Protocol):
    def __init__(self, request: bytes, on_event: Callable[[], None] | None) -> None:
        self.streamed = Streamed()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._on_event = on_event
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._started_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none of its subclasses
        self._started_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        self.streamed.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        *events, self._rest = (self._rest + body).split(b"\n\n")
        now_s = time.perf_counter() - self._started_s
        for lines in events:
            name, data = _parsed(lines)
            if data is not None:
                self.streamed.events.append((name, data))
                self.streamed.times_s.append(now_s)
                if self._on_event is not None:
                    self._on_event()

    def on_message_complete(self) -> None:
        self.streamed.is_whole = True
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def _parsed(lines: bytes) -> tuple[str, bytes | None]:
    """Id and data; a comment has no data."""
    name, data = "", None
    for line in lines.split(b"\n"):
        if line.startswith(b"data: "):
            data = line[6:]
        elif line.startswith(b"id: "):
            name = line[4:].decode()
    return name, data


async def stream(
    port: int,
    path: str,
    body: Mapping[str, object] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    on_event: Callable[[], None] | None = None,
) -> Streamed:
    """POST `body`, or GET without one, on this machine; returns when the stream is over or the connection lost."""
    try:
        _, client = await asyncio.get_running_loop().create_connection(
            lambda: _Client(_request(path, body, headers or {}), on_event), "127.0.0.1", port
        )
    except OSError:
        return Streamed()
    await client.ended
    return client.streamed


def _request(path: str, body: Mapping[str, object] | None, headers: Mapping[str, str]) -> bytes:
    payload = b"" if body is None else json.dumps(body).encode()
    told = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(payload)), **headers}
    method = "GET" if body is None else "POST"
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items())]
    return "\r\n".join([*lines, "", ""]).encode() + payload
