"""Files and batches of one gateway process, made when they are first asked for. Knows no HTTP but its refusals."""

import threading
from contextlib import closing
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmill.client import Client
from tokenmill.gateway.errors import SERVER, ApiError
from tokenmill.gateway.settings import GatewaySettings
from tokenmill.gateway.shelf import FileShelf

if TYPE_CHECKING:
    from tokenmill.gateway.batches.office import BatchOffice


class Desk:
    """Threads may share it. ApiError 501: the gateway runs without `--files`, or without what batches need."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._guard = threading.Lock()

    @property
    def shelf(self) -> FileShelf:
        if self._settings.files is None:
            raise _unavailable("files and batches need a folder: start the gateway with --files DIR")
        with self._guard:
            return self._shelf

    @property
    def office(self) -> "BatchOffice":
        if find_spec("rq") is None:
            raise _unavailable("batches need rq: pip install 'tokenmill[bulk]' where the gateway runs")
        _ = self.shelf
        with self._guard:
            return self._office

    def open(self) -> None:
        """At the start of a gateway: goes on with what another one had begun."""
        if self._settings.files is not None and find_spec("rq") is not None:
            self.shelf.sweep()
            self.office.resume()

    def close(self) -> None:
        if "_office" in self.__dict__:
            self._office.close()

    @cached_property
    def _shelf(self) -> FileShelf:
        return FileShelf(self._settings.files or Path())

    @cached_property
    def _office(self) -> "BatchOffice":
        from tokenmill.gateway.batches.office import BatchOffice

        settings = self._settings
        return BatchOffice(
            self._shelf,
            redis_url=settings.redis_url,
            rq_url=settings.rq_url or settings.redis_url,
            partitions=settings.partitions,
            max_requests=settings.max_batch_requests,
            is_served=self._is_served,
        )

    def _is_served(self, queue: str, model: str) -> bool:
        """True also while no worker is there to say."""
        settings = self._settings
        with closing(Client(settings.redis_url, queue, settings.partitions)) as client:
            workers = client.statistics().workers
        names = {worker.info.get(field) for worker in workers for field in ("served_model_name", "model")}
        return not workers or model in names


def _unavailable(message: str) -> ApiError:
    return ApiError(501, message, kind=SERVER, code="not_configured")
