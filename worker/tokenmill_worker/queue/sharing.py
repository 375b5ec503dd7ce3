"""One ready buffer for the readers of several partitions, each of which gets its share of the room. Knows no server."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from tokenmill.wire.keys import Keys
from tokenmill.wire.store import Delivery, Store

from tokenmill_worker.engine.api import Capacity
from tokenmill_worker.queue.admission import Admission
from tokenmill_worker.queue.gate import Gate
from tokenmill_worker.queue.intake import Intake
from tokenmill_worker.queue.lanes import Lanes
from tokenmill_worker.queue.ready import ReadyBuffer


class SharedReady(ReadyBuffer):
    """Room that was granted to one reader is not granted to another before that reader comes again.

    Readers are served in the order in which they ask, and none gets more than an equal part: so none starves, and one
    whose server hangs holds back no more than its part.
    """

    def __init__(self, is_wanted: Callable[[Admission], bool], num_readers: int) -> None:
        super().__init__(is_wanted)
        self._turn = threading.Condition(self._lock)  # only who is next need wake when the engine takes something
        self._num_readers = num_readers
        self._num_closed = 0
        self._waiting: deque[Share] = deque()
        self._granted: dict[Share, int] = {}

    def room(self, num_coming: int = 0) -> int:
        with self._lock:
            return super().room(num_coming) - sum(self._granted.values())

    def grant(self, share: "Share", num_wanted: int, *, timeout_s: float) -> int:
        """At least `num_wanted`; less when the time is over, or the share closed."""
        with self._lock:
            self.give_back(share)
            self._waiting.append(share)
            if self._turn.wait_for(lambda: share.is_closed or self._waiting[0] is share, timeout_s):
                self._changed.wait_for(lambda: share.is_closed or self._may_have(share, num_wanted), timeout_s)
            granted = self._part(num_wanted) if self._may_have(share, num_wanted) else 0
            self._waiting.remove(share)
            self._granted[share] = granted
            self._turn.notify_all()
            return granted

    def put_granted(self, share: "Share", admissions: Sequence[Admission]) -> None:
        with self._lock:
            self._granted[share] = max(0, self._granted.get(share, 0) - len(admissions))
            self.put(*admissions)

    def give_back(self, share: "Share") -> None:
        with self._lock:
            if self._granted.pop(share, 0):
                self._changed.notify_all()

    def close_one(self) -> None:
        """The engine need not wait any more once the last reader has closed."""
        with self._lock:
            self._num_closed += 1
            if self._num_closed == self._num_readers:
                self.close()
            self._changed.notify_all()
            self._turn.notify_all()

    def _may_have(self, share: "Share", num_wanted: int) -> bool:
        return self._waiting[0] is share and self.room() >= num_wanted

    def _part(self, num_wanted: int) -> int:
        return max(num_wanted, self.room() // self._num_readers)


class Share:
    """One reader's side of it; to its consumer, a ready buffer."""

    def __init__(self, shared: SharedReady, gate: Gate) -> None:
        self._shared = shared
        self._gate = gate
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._shared)

    def take(self, capacity: Capacity, *, timeout_s: float | None) -> list[Admission]:
        return self._shared.take(capacity, timeout_s=timeout_s)

    def put(self, *admissions: Admission) -> None:
        self._shared.put_granted(self, admissions)

    def wait_for_room(self, num_wanted: int, *, timeout_s: float, num_coming: int = 0) -> int:
        """What is coming was granted room before. None while another partition's reader is to be alone: what is read
        now would have to wait for it.
        """
        if not self._gate.wait_open(timeout_s):
            return 0
        return self._shared.grant(self, num_wanted, timeout_s=timeout_s)

    def give_back(self) -> None:
        self._shared.give_back(self)

    def close(self) -> None:
        """Closing again is no error."""
        if not self.is_closed:
            self.is_closed = True
            self._shared.close_one()


class SharingLanes(Lanes):
    """Whoever waits for what may come holds no room meanwhile; all who wait may together get what there is once."""

    def __init__(self, store: Store, keys: Keys, share: Share) -> None:
        super().__init__(store, keys)
        self._share = share

    def wait(self, worker: str, timeout_s: float, *, count: int = 1) -> list[Delivery]:
        self._share.give_back()
        return super().wait(worker, timeout_s, count=count)


class GatedIntake:
    """To its consumer an intake; begins nothing while another partition's reader is alone."""

    def __init__(self, intake: Intake, gate: Gate) -> None:
        self._intake = intake
        self._gate = gate

    def take(self, worker: str, deliveries: Sequence[Delivery]) -> Iterator[Admission]:
        with self._gate.beginning():
            yield from self._intake.take(worker, deliveries)
