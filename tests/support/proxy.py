"""A TCP proxy between processes and the server: hears every call, loses requests and replies. Its own thread.

The ledger hears each reply before its caller does, also the replies that the caller never gets.
"""

import asyncio
import contextlib
import random
import threading
from collections import deque
from typing import Any, Self

import hiredis

from tests.support.ledger import Ledger

_CHUNK = 1 << 16


class Proxy:
    """`loss`: the probability that a request, a whole pipeline as a rule, costs its connection; may be changed."""

    def __init__(self, upstream_port: int, ledger: Ledger, *, seed: int = 0, loss: float = 0.0) -> None:
        self.loss = loss
        self.num_lost_requests = self.num_lost_replies = self.num_requests = 0
        self.port = 0
        self._upstream_port = upstream_port
        self._ledger = ledger
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_ready = threading.Event()
        self._is_over = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._main(),), name="proxy")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self._thread.start()
        self._is_ready.wait()
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._is_over.set)
        self._thread.join()
        self._loop.close()

    async def _main(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._is_ready.set()
        await self._is_over.wait()
        server.close()
        for writer in list(self._writers):
            writer.close()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.closing(writer), contextlib.suppress(OSError):
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream_port)
            with contextlib.closing(up_writer):
                link = _Link()
                pumps = {
                    asyncio.ensure_future(self._pass_requests(link, reader, up_writer)),
                    asyncio.ensure_future(self._pass_replies(link, up_reader, writer)),
                }
                _, left = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in left:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        self._writers.discard(writer)

    async def _pass_requests(self, link: "_Link", source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(_CHUNK):
            self.num_requests += 1
            if self._random.random() < self.loss:
                if self._random.random() < 0.5:
                    self.num_lost_requests += 1
                    return
                self.num_lost_replies += 1
                link.is_to_lose = True
            link.ask(data)
            target.write(data)
            await target.drain()

    async def _pass_replies(self, link: "_Link", source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(_CHUNK):
            link.hear(data, self._ledger)
            if not link.is_to_lose:
                target.write(data)
                await target.drain()
            elif not link.asked:
                return


class _Link:
    """One connection: what was asked on it and not answered yet."""

    def __init__(self) -> None:
        self.asked: deque[list[bytes]] = deque()
        self.is_to_lose = False
        self._requests, self._replies = hiredis.Reader(), hiredis.Reader()

    def ask(self, data: bytes) -> None:
        self._requests.feed(data)
        while isinstance(command := self._requests.gets(), list):
            self.asked.append(command)

    def hear(self, data: bytes, ledger: Ledger) -> None:
        self._replies.feed(data)
        while (reply := self._next_reply()) is not False:
            ledger.observe(self.asked.popleft(), reply)

    def _next_reply(self) -> Any:
        return self._replies.gets()
