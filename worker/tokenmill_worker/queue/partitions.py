"""All partitions of a queue around one engine: what the loop knows as one consumer, publisher, lease and holdings.

Each partition has its own, side by side; here they are only gathered. Knows no server.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenmill.wire.keys import Keys, partition_of

from tokenmill_worker.engine.api import Capacity, TokenEvent
from tokenmill_worker.queue.admission import Admission, Tenure, ToldChoice
from tokenmill_worker.queue.clock import ServerClock
from tokenmill_worker.queue.consumer import POLL_S, Consumer, ConsumerStatistics
from tokenmill_worker.queue.gate import Gate
from tokenmill_worker.queue.holdings import Ending, Holdings
from tokenmill_worker.queue.lease import Lease, LeaseStatistics
from tokenmill_worker.queue.publisher import Publisher, PublisherStatistics
from tokenmill_worker.queue.recent import MOST_FAILURES, RecentTimes
from tokenmill_worker.queue.service import Service
from tokenmill_worker.queue.sharing import SharedReady


def engine_id(keys: Keys, request_id: str) -> str:
    """What the engine calls a request.

    An id stands in one partition, but for those that raw entries without one got: they may be the same in several.
    """
    return request_id if keys.owns(request_id) else f"{keys.partition}/{request_id}"


def partition_and_id(name: str, num_partitions: int) -> tuple[int, str]:
    """Back from what the engine calls it; `/` is in no id."""
    partition, slash, request_id = name.partition("/")
    return (int(partition), request_id) if slash else (partition_of(name, num_partitions), name)


class Holds(Protocol):
    """What the loop asks of a worker's holdings."""

    def __len__(self) -> int: ...
    def tenures(self) -> list[Tenure]: ...
    def take_fenced(self) -> list[str]: ...
    def endings(self) -> list[tuple[str, Ending]]: ...


class AllHoldings:
    """By the engine's names."""

    def __init__(self, parts: Sequence[tuple[Keys, Holdings]]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(holdings) for _, holdings in self._parts)

    def tenures(self) -> list[Tenure]:
        return [tenure for _, holdings in self._parts for tenure in holdings.tenures()]

    def take_fenced(self) -> list[str]:
        return [engine_id(keys, name) for keys, holdings in self._parts for name in holdings.take_fenced()]

    def endings(self) -> list[tuple[str, Ending]]:
        return [
            (engine_id(keys, name), ending) for keys, holdings in self._parts for name, ending in holdings.endings()
        ]

    def partition_of(self, tenure: Tenure) -> int | None:
        """None: it is not ours any more."""
        return next((keys.partition for keys, holdings in self._parts if holdings.holds(tenure)), None)

    def is_wanted(self, admission: Admission) -> bool:
        partition, _ = partition_and_id(admission.request.request_id, len(self._parts))
        return self._parts[partition][1].holds(admission.tenure)


class _Services:
    """Several services of one kind, as one."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._services = services

    def start(self) -> None:
        """All, or none."""
        try:
            for service in self._services:
                service.start()
        except BaseException:
            self.stop()
            raise

    def close(self) -> None:
        for service in self._services:
            service.close()

    def stop(self) -> None:
        """All are asked before the first is waited for."""
        self.close()
        for service in self._services:
            service.stop()

    def raise_if_failed(self) -> None:
        for service in self._services:
            service.raise_if_failed()


class Consumers(_Services):
    """All of them fill `ready`."""

    def __init__(self, consumers: Sequence[Consumer], ready: SharedReady) -> None:
        super().__init__(consumers)
        self._consumers = consumers
        self._ready = ready

    def poll(self, capacity: Capacity, *, wait: bool) -> list[Admission]:
        return self._ready.take(capacity, timeout_s=POLL_S if wait and not self.is_exhausted else None)

    @property
    def is_exhausted(self) -> bool:
        return all(consumer.is_exhausted for consumer in self._consumers)

    def release(self) -> None:
        for consumer in self._consumers:
            consumer.release()

    def statistics(self) -> ConsumerStatistics:
        parts = [consumer.statistics() for consumer in self._consumers]
        return ConsumerStatistics(
            num_ready=len(self._ready),
            num_fetched=sum(part.num_fetched for part in parts),
            num_quarantined=sum(part.num_quarantined for part in parts),
        )


class Publishers(_Services):
    """Each event goes to the publisher of its request's partition, under the id that it has there."""

    def __init__(self, publishers: Sequence[Publisher], holdings: AllHoldings) -> None:
        super().__init__(publishers)
        self._publishers = publishers
        self._holdings = holdings

    def open(self, admission: Admission) -> None:
        partition, _ = partition_and_id(admission.request.request_id, len(self._publishers))
        self._publishers[partition].open(admission)

    def publish(self, events: Sequence[TokenEvent], *, is_idle: bool = False) -> None:
        sorted_: dict[int, list[TokenEvent]] = {}
        for event in events:
            partition, request_id = partition_and_id(event.request_id, len(self._publishers))
            if request_id is not event.request_id:
                event = event._replace(request_id=request_id)
            sorted_.setdefault(partition, []).append(event)
        for partition, publisher in enumerate(self._publishers):
            publisher.publish(sorted_.get(partition, ()), is_idle=is_idle)

    def reject(self, tenure: Tenure, *, code: str, message: str, told: Sequence[ToldChoice] = ()) -> None:
        partition = self._holdings.partition_of(tenure)
        if partition is not None:
            self._publishers[partition].reject(tenure, code=code, message=message, told=told)

    def statistics(self) -> PublisherStatistics:
        parts = [publisher.statistics() for publisher in self._publishers]
        failures = sorted(failure for part in parts for failure in part.recent_failures)
        return PublisherStatistics(
            num_open=sum(part.num_open for part in parts),
            num_unpublished=sum(part.num_unpublished for part in parts),
            num_ended=sum(part.num_ended for part in parts),
            num_retried=sum(part.num_retried for part in parts),
            num_failed=sum(part.num_failed for part in parts),
            first_token_p50_ms=parts[0].first_token_p50_ms,  # measured together
            first_token_p95_ms=parts[0].first_token_p95_ms,
            recent_failures=tuple(failures[-MOST_FAILURES:]),
            num_writes_fenced=sum(part.num_writes_fenced for part in parts),
        )


class Leases(_Services):
    """One in each partition, under a name of its own."""

    def __init__(self, leases: Sequence[Lease]) -> None:
        super().__init__(leases)
        self._leases = leases

    @property
    def worker(self) -> str:
        """The name in partition 0, for people."""
        return self._leases[0].worker

    def leave(self) -> None:
        for lease in self._leases:
            lease.leave()

    def statistics(self) -> LeaseStatistics:
        parts = [lease.statistics() for lease in self._leases]
        return LeaseStatistics(
            worker=self.worker,
            num_renewals=sum(part.num_renewals for part in parts),
            num_fenced=sum(part.num_fenced for part in parts),
            num_reaped=sum(part.num_reaped for part in parts),
        )


@dataclass(frozen=True, slots=True)
class Part:
    """What serves one partition."""

    consumer: Consumer
    publisher: Publisher
    lease: Lease


class Site:
    """Where a partition's parts meet: its names, its node's clock, and what is held of it."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.clock = ServerClock()
        self.holdings = Holdings(self.clock.now_ms)


class Together:
    """What the partitions of a queue share, when there are several."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self.gate = Gate([site.holdings for site in sites])
        self.holdings = AllHoldings([(site.keys, site.holdings) for site in sites])
        self.ready = SharedReady(self.holdings.is_wanted, len(sites))
        self.first_tokens = RecentTimes()
