"""The quarantine lane: requests under which workers died, each of them alone in the engine. Knows no engine.

Whoever crashes alone is guilty; who was only near it finishes here.
"""

import threading
import time
from collections.abc import Callable

from tokenmill.wire.store import Delivery, Store, Transitions

from tokenmill_worker.queue.gate import Gate

PATIENCE_S = 30.0  # so long may a busy queue keep the quarantine lane waiting
TURN_SHARE = 3  # and for a third of that time may the quarantine lane then keep the queue waiting
IDLE_LOOK_S = 0.2  # so often may an idle worker look, however many short requests make it idle again and again


class Quarantine:
    """The reader's turns with the lane. `take` begins a delivery: it is held then, or settled."""

    def __init__(
        self,
        store: Store,
        transitions: Transitions,
        gate: Gate,
        *,
        patience_s: float = PATIENCE_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._transitions = transitions
        self._gate = gate
        self._patience_s = patience_s
        self._now_s = now_s
        self._due_s = now_s() + patience_s
        self._looked_s = float("-inf")
        self.num_served = 0

    def is_due(self) -> bool:
        """Waited long enough, however busy the engine is."""
        return self._now_s() >= self._due_s

    def is_worth_a_look(self) -> bool:
        """For who is idle, and was a moment ago."""
        return self._gate.is_idle and self._now_s() >= self._looked_s + IDLE_LOOK_S

    def serve(self, worker: str, take: Callable[[Delivery], None], *, stopping: threading.Event) -> int:
        """One request after the other, each alone, for a turn; returns how much is left to come.

        The engine is left to run empty only when there is one to serve: it is ours by then, so that no other worker
        waits for it too. Whatever is not begun goes back to the lane, uncounted, should this worker die meanwhile.
        """
        end_s = self._now_s() + self._patience_s / TURN_SHARE
        self._due_s = self._now_s() + self._patience_s  # also when this turn fails
        while True:
            found = self._store.run(self._transitions.quarantine(worker))
            if found.delivery is None or not self._serve_alone(found.delivery, take, stopping):
                break
            if self._now_s() >= end_s:
                break
        self._looked_s = self._now_s()
        self._due_s = self._looked_s + self._patience_s
        return found.num_left

    def _serve_alone(self, delivery: Delivery, take: Callable[[Delivery], None], stopping: threading.Event) -> bool:
        """Until it has left the engine. False: stopped before."""
        with self._gate.alone(stopping) as is_alone:
            if not is_alone:
                return False
            take(delivery)
            self.num_served += 1
            return self._gate.wait_until_left(stopping)
