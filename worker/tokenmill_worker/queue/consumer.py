"""The thread that reads the lanes ahead of the engine, and the loop's `poll`. Knows no engine.

It fetches what the engine can take now and a few more, so that a freed row never waits for the server, and a worker
that dies takes little with it.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenmill.wire.errors import FencedError
from tokenmill.wire.keys import FETCH_ORDER, MAX_JOBS_PER_CALL, Lane
from tokenmill.wire.store import Delivery, Held, Store, Transitions

from tokenmill_worker.engine.api import Capacity
from tokenmill_worker.queue.admission import Admission, Tenure
from tokenmill_worker.queue.holdings import Holdings
from tokenmill_worker.queue.isolation import BROKEN
from tokenmill_worker.queue.lanes import Lanes
from tokenmill_worker.queue.lease import Lease
from tokenmill_worker.queue.outage import ANSWER_TIMEOUT_S, OUTAGE, Backoff, insist
from tokenmill_worker.queue.quarantine import Quarantine
from tokenmill_worker.queue.ready import ReadyBuffer
from tokenmill_worker.queue.service import Service
from tokenmill_worker.queue.sharing import GatedIntake

if TYPE_CHECKING:
    from tokenmill_worker.queue.intake import Begun, Intake
    from tokenmill_worker.queue.sharing import Share

BLOCK_S = 0.2  # at most so long is the reader deaf to a stop; five looks a second cost an idle worker next to nothing
POLL_S = 1.0  # at most so long does an idle loop sleep before it looks after its services
BUNCH_S = 0.005  # so long the first of a bunch waits at most for the others: one full step in place of many small ones
HEAD_START_S = 0.001  # of a lone request before the reader goes on: both want the interpreter, and only one is awaited
AUDIT_INTERVAL_S = 30.0  # also without an error: a reply can get lost without one

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConsumerStatistics:
    num_ready: int = 0
    num_fetched: int = 0
    num_quarantined: int = 0


class Consumer(Service):
    """`is_bursting`: once nothing is left to do, `is_exhausted` becomes true and nothing more is read.

    `ready`: where requests go, when that is shared with other consumers.
    """

    def __init__(
        self,
        store: Store,
        transitions: Transitions,
        lanes: Lanes,
        intake: "Intake | GatedIntake",
        *,
        holdings: Holdings,
        lease: Lease,
        quarantine: Quarantine,
        ready: "ReadyBuffer | Share | None" = None,
        is_bursting: bool = False,
    ) -> None:
        super().__init__("consumer", stop_timeout_s=ANSWER_TIMEOUT_S)
        self._store = store
        self._transitions = transitions
        self._lanes = lanes
        self._intake = intake
        self._holdings = holdings
        self._lease = lease
        self._quarantine = quarantine
        self._is_bursting = is_bursting
        own = ReadyBuffer(lambda admission: holdings.holds(admission.tenure))
        self._ready = own if ready is None else ready  # one that is empty is false, too
        self._audit_due_s = 0.0
        self._ahead = None if isinstance(intake, GatedIntake) else intake  # what is gated is begun and held in one go
        self._begun: Begun | None = None  # sent, and to be prepared while the next ones begin
        self._num_fetched = 0
        self._is_quiet = False
        self._has_seen_the_end = False

    # The loop's side

    def poll(self, capacity: Capacity, *, wait: bool) -> list[Admission]:
        """Requests that fit into `capacity`, ready to run. Never touches the server.

        With `wait`, blocks until there is one, the consumer is stopped or exhausted, or POLL_S is over.
        """
        return self._ready.take(capacity, timeout_s=POLL_S if wait and not self.is_exhausted else None)

    @property
    def is_exhausted(self) -> bool:
        """In a burst: all lanes were empty, and what was read before has its final word."""
        return self._has_seen_the_end and not len(self._ready)

    def statistics(self) -> ConsumerStatistics:
        return ConsumerStatistics(len(self._ready), self._num_fetched, self._quarantine.num_served)

    def _wake(self) -> None:
        self._ready.close()

    # The thread

    def _run(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set() and not self._has_seen_the_end:
            try:
                self._read_on()
                backoff.reset()
            except OUTAGE as error:
                log.warning("reading waits for the server: %s", error)
                self._audit_due_s = 0.0  # a reply may be lost, and what it delivered with it
                backoff.wait(self._stopping)
            except FencedError:
                self._lease.renew_soon()
                backoff.wait(self._stopping)
            except BROKEN as error:  # no one request's fault: a lane or an index that is none any more
                log.error("reading fails: %s", error)
                backoff.wait(self._stopping)
        self._abandon_begun()

    def _read_on(self) -> None:
        try:
            self._read_once()
        except BaseException:
            self._abandon_begun()
            raise

    def _read_once(self) -> None:
        """One look at the lanes. Blocks while the engine has no room, and then while there is nothing to read."""
        worker = self._lease.worker
        if self._lease.is_given_up:
            self._prepare_begun()
            self._stopping.wait(BLOCK_S)
            return
        if self._audit_due_s <= time.monotonic():
            self._prepare_begun()
            self._audit(worker)
        if self._quarantine.is_due():
            self._prepare_begun()
            self._serve_quarantined(worker)
        room = self._room()
        if room < len(FETCH_ORDER) or self._stopping.is_set():
            return
        deliveries = [] if self._is_quiet else self._lanes.read(worker, room)
        if deliveries and self._ahead is not None:
            self._begin_ahead(self._ahead, worker, deliveries)
            return
        self._prepare_begun()
        self._take(worker, deliveries or self._read_idly(worker, room // len(FETCH_ORDER)))
        if self._is_quiet and len(self._holdings) == 1:
            self._holdings.wait_parting(HEAD_START_S)

    def _room(self) -> int:
        """Beside what has begun and is not ready yet; that waits for no room."""
        num_begun = 0 if self._begun is None else len(self._begun.claims)
        timeout_s = 0.0 if num_begun else BLOCK_S
        room = self._ready.wait_for_room(len(FETCH_ORDER), timeout_s=timeout_s, num_coming=num_begun)
        if room < len(FETCH_ORDER):
            self._prepare_begun()
        return room

    def _read_idly(self, worker: str, most: int) -> list[Delivery]:
        """Nothing waits: time for the quarantine lane, if nothing runs either; and then for whatever comes.

        As long as less than `most` come at once, there is no more of any lane, and the next read waits as well: a
        queue that is not busy costs one round trip for each read, not two.
        """
        if not len(self._holdings) and (self._is_bursting or self._quarantine.is_worth_a_look()):
            num_left = self._serve_quarantined(worker)
            if self._is_bursting and not num_left:
                return self._read_last(worker, most)
        deliveries = self._lanes.wait(worker, BLOCK_S, count=most)
        self._is_quiet = not self._is_bursting and len(deliveries) < most
        return deliveries

    def _serve_quarantined(self, worker: str) -> int:
        return self._quarantine.serve(worker, lambda delivery: self._take(worker, [delivery]), stopping=self._stopping)

    def _take(self, worker: str, deliveries: Iterable[Delivery]) -> None:
        """Begin them, as many at once as a call may take."""
        fresh = self._fresh(deliveries)
        for start in range(0, len(fresh), MAX_JOBS_PER_CALL):
            self._make_ready(self._intake.take(worker, fresh[start : start + MAX_JOBS_PER_CALL]))

    def _fresh(self, deliveries: Iterable[Delivery]) -> list[Delivery]:
        """A group that was lost and made again delivers what we run once more."""
        held = self._holdings.entries()
        if self._begun is not None:
            held |= {(claim.lane, claim.entry_id) for claim in self._begun.claims}
        return [delivery for delivery in deliveries if (delivery.lane, delivery.entry_id) not in held]

    def _begin_ahead(self, intake: "Intake", worker: str, deliveries: Sequence[Delivery]) -> None:
        """Their begin is sent, and those before them are prepared while the server is at it."""
        before, self._begun = self._begun, intake.begin(worker, self._fresh(deliveries))
        if before is not None:
            self._make_ready(intake.admit(before))

    def _prepare_begun(self) -> None:
        begun, self._begun = self._begun, None
        if begun is not None and self._ahead is not None:
            self._make_ready(self._ahead.admit(begun))

    def _abandon_begun(self) -> None:
        """The audit finds them: they are pending, and not held."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.attempt.abandon()

    def _make_ready(self, admissions: Iterable[Admission]) -> None:
        """In bunches: all that are prepared within BUNCH_S, also when an outage ends it."""
        bunch: list[Admission] = []
        due_s = time.monotonic() + BUNCH_S
        try:
            for admission in admissions:
                bunch.append(admission)
                if time.monotonic() >= due_s:
                    self._put(bunch)
                    bunch.clear()
                    due_s = time.monotonic() + BUNCH_S
        finally:
            self._put(bunch)

    def _put(self, bunch: Sequence[Admission]) -> None:
        if bunch:
            self._num_fetched += len(bunch)
            self._ready.put(*bunch)

    def _audit(self, worker: str, lanes: Iterable[Lane] = FETCH_ORDER) -> None:
        """Begin what was delivered to us and is not in memory: its delivery, or the reply to its begin, got lost.

        The quarantine lane hands out again by itself what it handed out.
        """
        self._take(worker, self._lanes.history(worker, lanes))
        self._audit_due_s = time.monotonic() + AUDIT_INTERVAL_S

    def _read_last(self, worker: str, most: int) -> list[Delivery]:
        """Nothing was held, then nothing was scheduled: what became due meanwhile is on a lane, or there is nothing."""
        deliveries = self._lanes.read(worker, most)
        if not deliveries:
            self._has_seen_the_end = True
            self._ready.close()
        return deliveries

    # The end

    def release(self) -> None:
        """After `stop`, when nothing runs any more: hand back what is still held, uncounted, and what got lost."""
        try:
            insist(self._release)
        except (*OUTAGE, *BROKEN, FencedError) as error:
            log.warning("%d requests are left to the takeover: %s", len(self._holdings), error)

    def _release(self) -> None:
        worker = self._lease.worker
        self._audit(worker, Lane)
        self._hand_back(worker, self._holdings.tenures())

    def _hand_back(self, worker: str, tenures: Sequence[Tenure]) -> None:
        for start in range(0, len(tenures), MAX_JOBS_PER_CALL):
            some = tenures[start : start + MAX_JOBS_PER_CALL]
            held = [Held(tenure.request_id, tenure.fence) for tenure in some]
            self._store.run(self._transitions.release(worker, held))
            for tenure in some:
                self._holdings.let_go(tenure)
