"""How many rows may be in flight: what keeps the fleet busy, and little more. Knows no queue: it is told.

A worker that ends a row needs the next one at once, while we are busy with writing: so each row that the fleet can run
has another one waiting behind it, and a fleet that ends rows faster than that gets as many as it ends while we look
away. More would only be lost time for who stops the run, or for the server's memory.
"""

import math
import time
from collections.abc import Callable

UNKNOWN_ROWS = 256  # in flight while no worker is there: so that the first finds work
MIN_ROWS = 64
MAX_ROWS = 16_384
MAX_BYTES = 64 << 20  # of prompts in flight: a thousand documents of a megabyte each would fill our memory
ROWS_PER_SLOT = 2
LOOK_AWAY_S = 0.25  # the longest that one round of writing, syncing and sending may take
LOOK_INTERVAL_S = 2.0


class Window:
    """`given`: by the user, and then it stays. Else it follows the workers that join and leave."""

    def __init__(self, given: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_rows = given or UNKNOWN_ROWS
        self._is_given = given is not None
        self._clock = clock
        self._looked_s = -math.inf
        self._num_settled = 0

    def is_full(self, num_rows: int, num_bytes: int) -> bool:
        return num_rows >= self.num_rows or (num_bytes >= MAX_BYTES and num_rows > 0)

    def is_look_due(self) -> bool:
        return not self._is_given and self._clock() - self._looked_s >= LOOK_INTERVAL_S

    def look(self, *, num_slots: int, num_settled: int) -> None:
        """`num_slots`: rows that all live workers run at once; `num_settled`: by this run so far."""
        now_s = self._clock()
        rows_per_s = (num_settled - self._num_settled) / max(now_s - self._looked_s, 1e-3)
        self._looked_s, self._num_settled = now_s, num_settled
        wanted = max(ROWS_PER_SLOT * num_slots, math.ceil(rows_per_s * LOOK_AWAY_S))
        self.num_rows = min(max(wanted, MIN_ROWS), MAX_ROWS) if num_slots else UNKNOWN_ROWS
