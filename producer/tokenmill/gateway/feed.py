"""What the fleet does, told to any number of pages by one reader, and only while there is one. Knows no HTTP."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from tokenmill.fleet.reader import AsyncFleetReader
from tokenmill.fleet.values import FleetSnapshot
from tokenmill.gateway.sse import event
from tokenmill.wire.errors import TokenmillError
from tokenmill.wire.messages import BatchPicture

PICTURES_S = 0.25  # as often as workers draw
LOOK_S = 1.0  # as often as they tell their figures

logger = logging.getLogger("tokenmill.gateway")


class FleetFeed:
    """`events` are server-sent: `look`, `pictures`, or `trouble` when the server does not answer.

    A page that is slow, or asleep, gets the newest of each and misses what was between.
    """

    def __init__(self, reader: AsyncFleetReader) -> None:
        self._reader = reader
        self._latest: dict[str, tuple[int, bytes]] = {}  # kind -> (number, event)
        self._number = 0
        self._news = asyncio.Condition()
        self._num_watching = 0
        self._task: asyncio.Task[None] | None = None
        self._is_over = False

    async def look(self) -> FleetSnapshot:
        """One, now."""
        return await self._reader.look()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Until the client goes or the gateway stops."""
        self._num_watching += 1
        if self._task is None:
            self._latest.clear()
            self._task = asyncio.create_task(self._poll())
        seen = 0
        try:
            while not self._is_over:
                async with self._news:
                    while self._number == seen and not self._is_over:
                        await self._news.wait()
                chunks = [chunk for number, chunk in sorted(self._latest.values()) if number > seen]
                seen = self._number
                yield b"".join(chunks)
        finally:
            self._leave()

    def end(self) -> None:
        self._is_over = True
        if self._task is not None:
            self._task.get_loop().create_task(self._wake())

    async def close(self) -> None:
        self.end()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._reader.close()

    def _leave(self) -> None:
        self._num_watching -= 1
        if not self._num_watching and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _poll(self) -> None:
        look_due_s, names = 0.0, list[str]()
        while True:
            started_s = time.monotonic()
            try:
                if started_s >= look_due_s:
                    look_due_s = started_s + LOOK_S
                    names = await self._tell_look()
                await self._tell_pictures(names)
            except TokenmillError as error:
                logger.warning("the fleet cannot be looked at: %s", error)
                await self._tell("trouble", {"message": "the queue's server does not answer"})
                look_due_s = 0.0
                await asyncio.sleep(LOOK_S)
            await asyncio.sleep(max(0.0, started_s + PICTURES_S - time.monotonic()))

    async def _tell_look(self) -> list[str]:
        look = await self._reader.look()
        await self._tell("look", look.describe())
        return [worker.picture_name for worker in look.workers if worker.picture_name is not None]

    async def _tell_pictures(self, names: list[str]) -> None:
        pictures = await self._reader.pictures(names)
        await self._tell("pictures", described(pictures))

    async def _tell(self, kind: str, told: Mapping[str, Any]) -> None:
        """Unless it is what was told last: an idle fleet costs its watchers next to nothing."""
        chunk = event(json.dumps(told, separators=(",", ":")).encode(), name=kind)
        if self._latest.get(kind, (0, b""))[1] == chunk:
            return
        if kind != "trouble":
            self._latest.pop("trouble", None)
        self._number += 1
        self._latest[kind] = (self._number, chunk)
        await self._wake()

    async def _wake(self) -> None:
        async with self._news:
            self._news.notify_all()


def described(pictures: Mapping[str, BatchPicture]) -> dict[str, Any]:
    return {name: picture.describe() for name, picture in pictures.items()}
