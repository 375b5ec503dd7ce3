"""Admissions between the reader's thread and the engine's: how many may be fetched, and which fit. Knows no server."""

import threading
from collections.abc import Callable

from tokenmill.wire.keys import MAX_JOBS_PER_CALL

from tokenmill_worker.engine.api import Capacity
from tokenmill_worker.queue.admission import Admission

READY_MAX = 8  # requests made ready beyond what the engine can take: enough to fill a freed row at once, few to lose
FETCH_MAX = MAX_JOBS_PER_CALL  # in one go: one call begins them, and no other worker waits long for its share
_NOTHING = Capacity(0, 0)


class ReadyBuffer:
    """In order of arrival. The engine's side says its capacity and takes what fits; the reader's side fills up.

    `is_wanted` says whether an admission is still ours; those that are not are passed over.
    """

    def __init__(self, is_wanted: Callable[[Admission], bool]) -> None:
        self._is_wanted = is_wanted
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # entered by its lock, which costs less
        self._admissions: list[Admission] = []
        self._capacity = _NOTHING
        self._typical_tokens = 0.0  # of one admission, exponentially weighted mean; 0: none was seen
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._admissions)

    # The engine's side

    def take(self, capacity: Capacity, *, timeout_s: float | None) -> list[Admission]:
        """What fits into `capacity`; the first one always, when the caller would wait (it has nothing else to do).

        With a timeout, waits that long for the first admission; `close` ends the wait.
        """
        with self._lock:
            self._capacity = capacity
            self._changed.notify_all()
            if timeout_s is not None:
                self._changed.wait_for(lambda: self._admissions or self._is_closed, timeout=timeout_s)
            self._admissions = [admission for admission in self._admissions if self._is_wanted(admission)]
            fitting, self._capacity = self._fitting(is_idle=timeout_s is not None)
            taken, self._admissions = self._admissions[:fitting], self._admissions[fitting:]
            if taken:
                self._changed.notify_all()
            return taken

    # The reader's side

    def put(self, *admissions: Admission) -> None:
        with self._lock:
            self._admissions += admissions
            for admission in admissions:
                before = self._typical_tokens or admission.num_tokens
                self._typical_tokens = before + 0.1 * (admission.num_tokens - before)
            self._changed.notify_all()

    def room(self, num_coming: int = 0) -> int:
        """How many more may be fetched: what the engine has room for, and READY_MAX less those here that do not fit.

        `num_coming` more are on their way. How large a request is shows only when it is here, so room for them is
        guessed from those that came before.
        """
        with self._lock:
            fitting, left = self._fitting(is_idle=False)
            expected = int(min(left.num_rows, left.num_tokens / self._typical_tokens)) if self._typical_tokens else 0
            return min(FETCH_MAX, expected + READY_MAX - (len(self._admissions) - fitting) - num_coming)

    def wait_for_room(self, num_wanted: int, *, timeout_s: float, num_coming: int = 0) -> int:
        """The room, once it is at least `num_wanted`; or what there is when the time is over or the buffer closed."""
        with self._lock:
            room = self.room(num_coming)
            if room < num_wanted and timeout_s > 0.0:
                self._changed.wait_for(
                    lambda: self._is_closed or self.room(num_coming) >= num_wanted, timeout=timeout_s
                )
                room = self.room(num_coming)
            return room

    def close(self) -> None:
        """Wake whoever waits; nobody needs to wait any more."""
        with self._lock:
            self._is_closed = True
            self._changed.notify_all()

    def clear(self) -> None:
        with self._lock:
            self._admissions.clear()

    def _fitting(self, *, is_idle: bool) -> tuple[int, Capacity]:
        """How many of the first admissions fit, and the capacity they leave."""
        rows, tokens = self._capacity.num_rows, self._capacity.num_tokens
        for count, admission in enumerate(self._admissions):
            num_rows, num_tokens = admission.num_rows, admission.num_tokens
            fits = num_rows <= rows and num_tokens <= tokens
            if not fits and not (is_idle and count == 0):
                return count, Capacity(rows, tokens)
            rows, tokens = max(0, rows - num_rows), max(0, tokens - num_tokens)
        return len(self._admissions), Capacity(rows, tokens)
