"""The worker's loop: poll, admit, step, publish; and at the end, drain. Knows no Redis, no threads and no model."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tokenmill_worker.engine.api import InvalidRequestError, TokenEvent
from tokenmill_worker.engine.engine import Engine
from tokenmill_worker.observe.watch import StepWatch
from tokenmill_worker.queue.admission import Admission
from tokenmill_worker.queue.consumer import Consumer
from tokenmill_worker.queue.lease import Lease
from tokenmill_worker.queue.partitions import Consumers, Holds, Leases, Publishers
from tokenmill_worker.queue.publisher import Publisher


class Worker:
    """Keeps one engine busy with what the consumer brings, until it is stopped or the consumer is exhausted.

    The engine belongs to the thread that calls `run`. That thread never waits for the server: the consumer reads ahead
    of it, the publisher writes behind it, and the lease keeps both entitled to do so, each on a thread of its own.
    """

    def __init__(
        self,
        engine: Engine,
        consumer: Consumer | Consumers,
        publisher: Publisher | Publishers,
        lease: Lease | Leases,
        holdings: Holds,
        *,
        drain_timeout_s: float,
        on_step: Sequence[StepWatch] = (),
    ) -> None:
        self.engine = engine
        self.consumer = consumer
        self.publisher = publisher
        self.lease = lease
        self.holdings = holdings
        self._drain_timeout_s = drain_timeout_s
        self._on_step = on_step
        self._is_stopping = False

    def run(self) -> None:
        """Returns when everything is drained; raises what ended a service, or the engine, before its time."""
        with self._services():
            while self._is_open():
                admissions = self.consumer.poll(self.engine.capacity(), wait=not self.engine.has_work())
                self._let_go()
                self._admit(admissions)
                self._step_and_publish()
            self._drain()

    def stop(self) -> None:
        """Ask `run` to drain and return. From any thread, but not from a signal handler: it takes a lock."""
        self._is_stopping = True
        self.consumer.close()

    def _is_open(self) -> bool:
        for service in (self.lease, self.publisher, self.consumer):
            service.raise_if_failed()
        return not self._is_stopping and (self.engine.has_work() or not self.consumer.is_exhausted)

    def _let_go(self) -> None:
        """Of what was fenced, without a word; of what was cancelled or came too late, with its last one.

        Between poll and admit: a request that was lost and comes back in one turn must leave before it enters.
        """
        for request_id in self.holdings.take_fenced():
            self.engine.drop(request_id)
        for request_id, reason in self.holdings.endings():
            self.engine.cancel(request_id, reason)

    def _admit(self, admissions: Sequence[Admission]) -> None:
        for admission in admissions:
            self.publisher.open(admission)
            try:
                self.engine.add_request(admission.request, is_validated=True)
            except InvalidRequestError as error:  # an earlier worker may have told more than this one allows
                self.publisher.reject(admission.tenure, code=error.code, message=str(error), told=admission.told)

    def _step_and_publish(self) -> None:
        events = self._step()
        self.publisher.publish(events, is_idle=not self.engine.has_work())

    def _step(self) -> Sequence[TokenEvent]:
        if not self._on_step:
            return self.engine.step()
        started_s = time.perf_counter()
        events = self.engine.step()
        for tell in self._on_step:
            tell(self.engine, events, started_s)
        return events

    def _drain(self) -> None:
        """Nothing new comes. What fits into the drain time is finished; the rest is written down and handed back."""
        self.consumer.close()
        give_up_s = time.monotonic() + self._drain_timeout_s
        while self.engine.has_work() and time.monotonic() < give_up_s:
            self._let_go()
            self._step_and_publish()
        self.consumer.stop()
        self.publisher.stop()
        self.consumer.release()
        self.lease.stop()  # a renewal after the farewell would be answered `fenced`, and register anew
        self.lease.leave()

    @contextmanager
    def _services(self) -> Iterator[None]:
        """Started in this order, stopped in reverse. After a failure nothing is handed back: the lease runs out, and
        whoever takes over counts it against requests that bring workers down.
        """
        with ExitStack() as stack:
            for service in (self.lease, self.publisher, self.consumer):
                service.start()
                stack.callback(service.stop)
            yield
