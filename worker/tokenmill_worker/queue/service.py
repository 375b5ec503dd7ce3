"""A thread with a name, an orderly end, and a failure that somebody notices. Knows nothing of what it runs."""

import logging
import threading
from abc import ABC, abstractmethod

log = logging.getLogger(__name__)


class Service(ABC):
    """An exception that ends the thread is kept for `raise_if_failed`."""

    def __init__(self, name: str, *, stop_timeout_s: float) -> None:
        self.name = name
        self._stop_timeout_s = stop_timeout_s
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        # A daemon, so that a thread stuck in a dead connection cannot keep a process alive that gave up waiting.
        self._thread = threading.Thread(target=self._main, name=f"tokenmill-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ask the thread to end, without waiting for it."""
        self._stopping.set()
        self._wake()

    def stop(self) -> None:
        """Ask the thread to end and wait for it, though not for ever; stopping again is no error."""
        self.close()
        if self._thread.ident is not None:
            self._thread.join(self._stop_timeout_s)

    def raise_if_failed(self) -> None:
        """To be called by whoever depends on this service: its failure is theirs."""
        if self._failure is not None:
            raise self._failure

    def _main(self) -> None:
        try:
            self._run()
        except BaseException as failure:
            log.error("the %s thread ended: %s: %s", self.name, type(failure).__name__, failure)
            self._failure = failure

    @abstractmethod
    def _run(self) -> None:
        """The thread's body; returns soon after `_stopping` is set."""

    @abstractmethod
    def _wake(self) -> None:
        """Interrupt a wait on something other than `_stopping`; called after that is set."""
