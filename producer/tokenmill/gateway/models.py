"""Which models a queue serves, as its live workers tell. One look a second, however many ask."""

import asyncio
import time
from typing import NamedTuple

from tokenmill.client import AsyncClient
from tokenmill.gateway.errors import ApiError
from tokenmill.wire.store import QueueStatistics

LOOK_S = 1.0  # a worker writes its info once a second


class ServedModel(NamedTuple):
    """`name` as requests may give it; `fingerprint` of weights, tokenizer and template."""

    name: str
    max_model_len: int | None
    fingerprint: str


class Models:
    """What one queue serves. Without a worker nobody knows, and any name may come true."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._lock = asyncio.Lock()
        self._looked_s = float("-inf")
        self._served: dict[str, ServedModel] = {}

    async def served(self) -> dict[str, ServedModel]:
        """By name. UnavailableError: the server does not say."""
        async with self._lock:
            if time.monotonic() - self._looked_s > LOOK_S:
                self._served = _served(await self._client.statistics())
                self._looked_s = time.monotonic()
        return self._served

    async def check(self, name: str | None) -> str:
        """The name itself, or that of the model which answers where none is given; ApiError 404: nobody serves it."""
        served = await self.served()
        if name is None:
            return next(iter(served), "default")
        if served and name not in served:
            raise unknown_model(name)
        return name


def unknown_model(name: str) -> ApiError:
    message = f"The model {name[:200]!r} does not exist here; GET /v1/models lists those that do."
    return ApiError(404, message, param="model", code="model_not_found")


def _served(statistics: QueueStatistics) -> dict[str, ServedModel]:
    served: dict[str, ServedModel] = {}
    for worker in statistics.workers:
        length = worker.info.get("max_model_len", "")
        for field in ("served_model_name", "model"):
            if name := worker.info.get(field):
                number = int(length) if length.isdecimal() else None
                served[name] = ServedModel(name, number, worker.info.get("fingerprint", ""))
    return served
