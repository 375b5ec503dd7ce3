"""Every tenure this worker holds, from its claim to its last word, and which of them must leave. Knows no server.

The one place where the threads meet: the reader adds, the publisher and the lease strike off or flag, the loop asks.
"""

import heapq
import threading
from collections.abc import Callable, Iterable
from typing import Literal

from tokenmill.wire.keys import Lane

from tokenmill_worker.queue.admission import Tenure

Ending = Literal["cancelled", "expired"]


class Holdings:
    """`now_ms` is the clock that deadlines are kept by. All methods may be called from any thread."""

    def __init__(self, now_ms: Callable[[], float]) -> None:
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._emptied = threading.Condition(self._lock)
        self._parting = threading.Condition(self._lock)
        self._tenures: dict[str, Tenure] = {}
        self._fenced: list[str] = []
        self._endings: dict[str, Ending] = {}
        self._deadlines: list[tuple[float, str]] = []  # heap

    def __len__(self) -> int:
        return len(self._tenures)

    # Hold, and let go

    def hold(self, tenure: Tenure) -> None:
        """An earlier tenure of the same request, if there is one, was fenced by this one."""
        with self._lock:
            if tenure.request_id in self._tenures:
                self._strike(tenure.request_id)
            self._tenures[tenure.request_id] = tenure
            if tenure.deadline_ms is not None:
                heapq.heappush(self._deadlines, (tenure.deadline_ms, tenure.request_id))

    def let_go(self, tenure: Tenure) -> None:
        """Its last word is said, or it was handed back."""
        with self._lock:
            if self._tenures.get(tenure.request_id) is tenure:
                self._forget(tenure.request_id)

    def holds(self, tenure: Tenure) -> bool:
        return self._tenures.get(tenure.request_id) is tenure

    def wait_empty(self, timeout_s: float) -> bool:
        """Until nothing is held any more; False when the time is over before."""
        with self._emptied:
            return self._emptied.wait_for(lambda: not self._tenures, timeout=timeout_s)

    def part(self) -> None:
        """Last words are about to be said."""
        with self._lock:
            self._parting.notify_all()

    def wait_parting(self, timeout_s: float) -> bool:
        """Until the next last words are about to be said; False when the time is over before."""
        with self._lock:
            return self._parting.wait(timeout_s)

    def entries(self) -> set[tuple[Lane, str]]:
        """Where on the lanes the held requests stand."""
        with self._lock:
            return {(tenure.lane, tenure.entry_id) for tenure in self._tenures.values()}

    def tenures(self) -> list[Tenure]:
        with self._lock:
            return list(self._tenures.values())

    # Lost to another worker: whoever runs it must drop it without a word

    def fence(self, tenure: Tenure) -> None:
        with self._lock:
            if self._tenures.get(tenure.request_id) is tenure:
                self._strike(tenure.request_id)

    def fence_all(self) -> None:
        """The lease ran out: everything belongs to others."""
        with self._lock:
            for request_id in list(self._tenures):
                self._strike(request_id)

    def take_fenced(self) -> list[str]:
        """Ids struck off since the last call. One that is told here was struck off before it can be held again."""
        if not self._fenced:  # the common case, once a step, needs no lock
            return []
        with self._lock:
            fenced, self._fenced = self._fenced, []
            return fenced

    # To end early, with a last word of our own

    def cancel(self, request_ids: Iterable[str]) -> None:
        with self._lock:
            for request_id in request_ids:
                if request_id in self._tenures:
                    self._endings.setdefault(request_id, "cancelled")

    def endings(self) -> list[tuple[str, Ending]]:
        """Held requests that were cancelled or are past their deadline; told again until they are let go.

        So an ending that comes before its request is admitted still meets it there.
        """
        now_ms = self._now_ms()
        if not self._endings and not (self._deadlines and self._deadlines[0][0] <= now_ms):
            return []
        with self._lock:
            while self._deadlines and self._deadlines[0][0] <= now_ms:
                _, request_id = heapq.heappop(self._deadlines)
                held = self._tenures.get(request_id)
                if held is not None and held.deadline_ms is not None and held.deadline_ms <= now_ms:
                    self._endings.setdefault(request_id, "expired")
            return list(self._endings.items())

    def _strike(self, request_id: str) -> None:
        self._forget(request_id)
        self._fenced.append(request_id)

    def _forget(self, request_id: str) -> None:
        del self._tenures[request_id]
        if not self._tenures:
            self._emptied.notify_all()
        self._endings.pop(request_id, None)
