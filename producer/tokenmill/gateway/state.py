"""What the routes of one gateway process share: settings, clients of its queues, tasks that outlive their request.

Nothing here is missed when the process dies: the truth is in Redis, and any other gateway process finds it there.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, cast

from fastapi import Depends, Request

from tokenmill.client import AsyncClient
from tokenmill.fleet.reader import AsyncFleetReader
from tokenmill.gateway.desk import Desk
from tokenmill.gateway.feed import FleetFeed
from tokenmill.gateway.models import Models
from tokenmill.gateway.settings import GatewaySettings

if TYPE_CHECKING:
    from tokenmill.gateway.auth import KeyBook


@dataclass(frozen=True, slots=True)
class Queue:
    """One queue: how to ask it, and what it serves."""

    client: AsyncClient
    models: Models


@dataclass(slots=True)
class Gateway:
    settings: GatewaySettings
    keys: "KeyBook | None" = None
    desk: Desk = field(init=False)
    _queues: dict[str, Queue] = field(default_factory=dict)
    _feeds: dict[str, FleetFeed] = field(default_factory=dict)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _attempts: set[asyncio.Task[Any]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.desk = Desk(self.settings)

    @property
    def client(self) -> AsyncClient:
        """Of the queue that the gateway was started for."""
        return self.queue().client

    @property
    def models(self) -> Models:
        return self.queue().models

    def queue(self, name: str | None = None) -> Queue:
        """By its name; None: the gateway's own."""
        name = name or self.settings.queue
        if name not in self._queues:
            client = AsyncClient(self.settings.redis_url, name, self.settings.partitions)
            self._queues[name] = Queue(client, Models(client))
        return self._queues[name]

    def feed(self, name: str | None = None) -> FleetFeed:
        """What the fleet of a queue does, for those who look. By its name, for those who may see that queue alone: then
        without bulk runs, which are of all queues.
        """
        key, its = name or "", self.settings
        if key not in self._feeds:
            queue = name or its.queue
            reader = AsyncFleetReader(its.redis_url, queue, its.partitions, rq_url=its.rq_url, has_runs=name is None)
            self._feeds[key] = FleetFeed(reader)
        return self._feeds[key]

    def end_feeds(self) -> None:
        """Their streams have no end of their own: a server that stops would wait for them in vain."""
        for feed in self._feeds.values():
            feed.end()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Work that goes on when its request is over, and that `close` waits for."""
        self._start(work, self._tasks)

    def attempt(self, work: Coroutine[Any, Any, Any]) -> None:
        """Work that is given up when the gateway ends."""
        self._start(work, self._attempts)

    def _start(self, work: Coroutine[Any, Any, Any], among: set[asyncio.Task[Any]]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        among.add(task)
        task.add_done_callback(among.discard)

    async def close(self) -> None:
        for attempt in self._attempts:
            attempt.cancel()
        await asyncio.gather(*self._tasks, *self._attempts, return_exceptions=True)
        for feed in self._feeds.values():
            await feed.close()
        for queue in self._queues.values():
            await queue.client.close()
        if self.keys is not None:
            await self.keys.close()
        await asyncio.to_thread(self.desk.close)


async def gateway_of(request: Request) -> Gateway:
    """(Not a plain function: FastAPI runs those on a thread of their own, which each request would wait for.)"""
    return cast("Gateway", request.app.state.gateway)


GatewayOf = Annotated[Gateway, Depends(gateway_of)]
