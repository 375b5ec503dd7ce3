"""All results that one asyncio client follows in one partition, read over one connection. Knows no message.

One blocking read names every stream that somebody follows. Who comes while it blocks rings the listener's bell, a
stream that every such read names too: the read returns, and the next one names the newcomer as well. So a thousand
followers cost one connection and one read for all that a moment has brought, and one alone waits no longer than by
itself.
"""

import asyncio
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tokenmill.follow import BLOCK_S, LOOK_COUNT, STREAMS_PER_S, split_entry_id
from tokenmill.wire.store import AsyncStore, Command, Transitions

NUM_UNPACED = 64  # followers whose reads follow each other at once; with more, a pause lets news gather
MAX_AHEAD = 1_000  # entries that wait for a slow follower before no more are read for it: bounds memory

News = list[Any]  # entries as the server gives them


@dataclass(slots=True, eq=False)
class Place:
    """One follower. `last_id`: of the last entry found for it; `news`: those that it has not taken yet."""

    key: str
    last_id: str
    news: News = field(default_factory=list)
    waiter: "asyncio.Future[News] | None" = None

    @property
    def is_open(self) -> bool:
        """More may come, and there is room for it. (A terminal entry's id ends with -1, and nothing follows it.)"""
        return not self.last_id.endswith("-1") and len(self.news) < MAX_AHEAD


class Listener:
    """Not for several threads or event loops."""

    def __init__(self, reads: AsyncStore, rings: AsyncStore, transitions: Transitions) -> None:
        """`reads`: whose connections may block; `rings`: another one."""
        self._reads = reads
        self._rings = rings
        self._bell = transitions.keys.bell(secrets.token_hex(8))
        self._ring = transitions.ring(self._bell)
        self._bell_id = "0-0"
        self._places: dict[str, list[Place]] = {}  # by key
        self._asked: dict[str, str] | None = None  # by the read that is under way
        self._task: asyncio.Task[None] | None = None
        self._is_rung = False

    @contextmanager
    def following(self, key: str, after: str) -> Iterator[Place]:
        place = Place(key, after)
        self._places.setdefault(key, []).append(place)
        try:
            yield place
        finally:
            self._places[key].remove(place)
            if not self._places[key]:
                del self._places[key]

    async def wait(self, place: Place, block_s: float) -> News:
        """The entries after the last ones; none when none came in time. UnavailableError: the server went away."""
        if not place.news:
            await self._see_to_it(place)
            place.waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(block_s):
                    await place.waiter
            except TimeoutError:
                return []
            finally:
                place.waiter = None
        news, place.news = place.news, []
        return news

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _see_to_it(self, place: Place) -> None:
        """That a read which names its stream is under way, or soon will be."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        elif self._asked is not None and not self._is_rung and not _covers(self._asked, place):
            self._is_rung = True
            await self._rings.run(self._ring)

    async def _run(self) -> None:
        """Reads while somebody may get news by it."""
        try:
            while asked := self._open_streams():
                self._share(await self._read(asked))
                if len(asked) > NUM_UNPACED:
                    await asyncio.sleep(len(asked) / STREAMS_PER_S)
        except Exception as error:  # whatever it is: who waits must not wait for ever, and raises it
            self._tell(error)

    def _open_streams(self) -> dict[str, str]:
        """Key -> the id after which to read."""
        return {
            key: min((place.last_id for place in places), key=split_entry_id)
            for key, places in self._places.items()
            if any(place.is_open for place in places)
        }

    async def _read(self, asked: dict[str, str]) -> Any:
        self._is_rung, self._asked = False, asked
        try:
            (reply,) = await self._reads.send([self._command(asked)])
        finally:
            self._asked = None
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _command(self, asked: dict[str, str]) -> Command:
        block_ms = round(BLOCK_S * 1000)
        keys = ("STREAMS", self._bell, *asked, self._bell_id, *asked.values())
        return ("XREAD", "COUNT", LOOK_COUNT, "BLOCK", block_ms, *keys)

    def _share(self, streams: Iterable[tuple[bytes, News]]) -> None:
        for name, entries in streams:
            key = name.decode()
            if key == self._bell:
                self._bell_id = entries[-1][0].decode()
            for place in self._places.get(key, ()):
                _give(place, entries)

    def _tell(self, error: Exception) -> None:
        for place in [place for places in self._places.values() for place in places]:
            if place.waiter is not None and not place.waiter.done():
                place.waiter.set_exception(error)


def _covers(asked: dict[str, str], place: Place) -> bool:
    """Two may follow one stream from different places."""
    after = asked.get(place.key)
    return after is not None and split_entry_id(after) <= split_entry_id(place.last_id)


def _give(place: Place, entries: News) -> None:
    after = split_entry_id(place.last_id)
    place.news += [entry for entry in entries if split_entry_id(entry[0].decode()) > after]
    if place.news:
        place.last_id = place.news[-1][0].decode()
        if place.waiter is not None and not place.waiter.done():
            place.waiter.set_result(place.news)
