"""Who may begin requests: every partition's reader, or one alone, until what it began has left. Knows no server."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tokenmill_worker.queue.holdings import Holdings

LOOK_S = 0.2  # at most so long is a wait deaf to a stop


class Gate:
    """`holdings`: all that the worker's readers fill."""

    def __init__(self, holdings: Sequence[Holdings]) -> None:
        self._holdings = holdings
        self._changed = threading.Condition()
        self._num_inside = 0
        self._owner: int | None = None  # the thread that is alone, or about to be

    @property
    def is_idle(self) -> bool:
        """Nothing is held, so nothing runs."""
        return not any(map(len, self._holdings))

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """For who begins requests, until all that were begun are held."""
        with self._changed:
            self._changed.wait_for(self._is_open)
            self._num_inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_inside -= 1
                self._changed.notify_all()

    def wait_open(self, timeout_s: float) -> bool:
        """False: somebody is alone, or wants to be, and it lasts."""
        with self._changed:
            return self._changed.wait_for(self._is_open, timeout_s)

    @contextmanager
    def alone(self, stopping: threading.Event) -> Iterator[bool]:
        """Nobody else begins anything, and what ran has left. False: stopped before it came to that."""
        is_owner = self._claim(stopping)
        try:
            yield is_owner and self._wait_for_others(stopping) and self.wait_until_left(stopping)
        finally:
            if is_owner:
                self._give_up()

    def wait_until_left(self, stopping: threading.Event) -> bool:
        """Nothing is held any more, by no partition. False: stopped before."""
        while not stopping.is_set():
            if all(holdings.wait_empty(LOOK_S) for holdings in self._holdings):
                return True
        return False

    def _is_open(self) -> bool:
        return self._owner in (None, threading.get_ident())

    def _claim(self, stopping: threading.Event) -> bool:
        with self._changed:
            while not stopping.is_set():
                if self._changed.wait_for(lambda: self._owner is None, LOOK_S):
                    self._owner = threading.get_ident()
                    return True
            return False

    def _wait_for_others(self, stopping: threading.Event) -> bool:
        """Who is beginning requests already; they are held soon after."""
        with self._changed:
            while not stopping.is_set():
                if self._changed.wait_for(lambda: not self._num_inside, LOOK_S):
                    return True
            return False

    def _give_up(self) -> None:
        with self._changed:
            self._owner = None
            self._changed.notify_all()
