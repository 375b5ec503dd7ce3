"""One immutable look at a worker, put together from its parts: the one source of what is shown about it."""

import json
import time
from dataclasses import asdict, dataclass

from tokenmill_worker.engine.api import EngineStatistics
from tokenmill_worker.queue.consumer import ConsumerStatistics
from tokenmill_worker.queue.lease import LeaseStatistics
from tokenmill_worker.queue.publisher import PublisherStatistics
from tokenmill_worker.worker import Worker


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """Each part's own record. Names within the parts do not repeat, so that `fields` can be flat."""

    engine: EngineStatistics
    consumer: ConsumerStatistics
    publisher: PublisherStatistics
    lease: LeaseStatistics

    @classmethod
    def of(cls, worker: Worker) -> "WorkerStatistics":
        """Cheap; from any thread."""
        return cls(
            worker.engine.statistics(),
            worker.consumer.statistics(),
            worker.publisher.statistics(),
            worker.lease.statistics(),
        )

    def fields(self) -> dict[str, str]:
        """For the worker's info hash, whose values are strings."""
        parts = (self.engine, self.consumer, self.publisher, self.lease)
        told = {name: _text(value) for part in parts for name, value in asdict(part).items()}
        return {**told, "told_s": f"{time.monotonic():.3f}"}  # rates are the growth of totals between two of these


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
