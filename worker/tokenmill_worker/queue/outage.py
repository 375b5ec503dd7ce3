"""What counts as an outage of the server, and how long to wait before asking it again. Knows no key and no thread."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from redis.exceptions import OutOfMemoryError, TimeoutError
from tokenmill.wire.errors import QueueBusyError, UnavailableError
from tokenmill.wire.store import PASSING

ANSWER_TIMEOUT_S = 6.0  # a call that got no answer has raised by then (tokenmill.wire.store.connect, and a BLOCK)

# The server is away, loading, promoting, moving, or full: nothing is wrong with what we asked, so we ask again. The
# first two are what a transition raises, the others what a plain command does.
OUTAGE = (UnavailableError, QueueBusyError, TimeoutError, OutOfMemoryError, *PASSING)

FAREWELL_S = 1.0  # so long does a worker that ends try again: a connection that was cut is made anew

Result = TypeVar("Result")


class Backoff:
    """Waits that double from `first_s` to `most_s`, and end at once when the event is set."""

    def __init__(self, *, first_s: float = 0.05, most_s: float = 1.0) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._next_s = first_s

    def wait(self, interrupted: threading.Event) -> None:
        interrupted.wait(self._next_s)
        self._next_s = min(2 * self._next_s, self._most_s)

    def reset(self) -> None:
        self._next_s = self._first_s


def insist(action: Callable[[], Result], *, patience_s: float = FAREWELL_S) -> Result:
    """What `action` returns, once it is through. Raises an OUTAGE that lasts longer than `patience_s`."""
    give_up_s = time.monotonic() + patience_s
    backoff = Backoff()
    while True:
        try:
            return action()
        except OUTAGE:
            if time.monotonic() >= give_up_s:
                raise
        backoff.wait(threading.Event())
