"""Looks at a fleet, blocking or awaiting: thin, over one core. What is asked, and what it means, is in gathering.py."""

import asyncio
from collections.abc import Sequence

from tokenmill.fleet.gathering import Gatherer, decoded, look_at
from tokenmill.fleet.runs import RunShelf
from tokenmill.fleet.values import FleetSnapshot
from tokenmill.partitions import Partitions
from tokenmill.wire.messages import BatchPicture
from tokenmill.wire.store import AsyncStore, Store, connect, connect_async


class FleetReader:
    """One queue of the server at `url`; `rq_url`: where bulk runs are queued, when that is another server."""

    def __init__(self, url: str, queue: str = "default", partitions: int = 1, *, rq_url: str | None = None) -> None:
        self._parts = Partitions(queue, partitions, url=url)
        self._stores = self._parts.connect(lambda tag: Store(connect(url, key=tag)))
        self._shelf = RunShelf(rq_url or url)
        self._gatherer = Gatherer()

    def look(self) -> FleetSnapshot:
        """Everything but pictures. Rates want a second look, a second or more later."""
        parts = zip(self._stores, self._parts.transitions, strict=True)
        looks = [store.run(look_at(transitions)) for store, transitions in parts]
        return self._gatherer.snapshot(looks, self._shelf.look())

    def pictures(self, workers: Sequence[str]) -> dict[str, BatchPicture]:
        """By `picture_name`. Asking makes all workers draw for some seconds: the first comes within a second."""
        return decoded(self._stores[0].run(self._parts.transitions[0].watch(workers)))

    def close(self) -> None:
        for store in self._stores:
            store.close()
        self._shelf.close()


class AsyncFleetReader:
    """As FleetReader, for asyncio."""

    def __init__(
        self,
        url: str,
        queue: str = "default",
        partitions: int = 1,
        *,
        rq_url: str | None = None,
        has_runs: bool = True,
    ) -> None:
        """`has_runs` False: whoever looks may not see other people's."""
        self._parts = Partitions(queue, partitions, url=url)
        self._stores = self._parts.connect(lambda tag: AsyncStore(connect_async(url, key=tag)))
        self._shelf = RunShelf(rq_url or url) if has_runs else None
        self._gatherer = Gatherer()

    async def look(self) -> FleetSnapshot:
        parts = zip(self._stores, self._parts.transitions, strict=True)
        looks = [await store.run(look_at(transitions)) for store, transitions in parts]
        runs = await asyncio.to_thread(self._shelf.look) if self._shelf is not None else None  # RQ knows no asyncio
        return self._gatherer.snapshot(looks, runs)

    async def pictures(self, workers: Sequence[str]) -> dict[str, BatchPicture]:
        return decoded(await self._stores[0].run(self._parts.transitions[0].watch(workers)))

    async def close(self) -> None:
        for store in self._stores:
            await store.close()
        if self._shelf is not None:
            self._shelf.close()
