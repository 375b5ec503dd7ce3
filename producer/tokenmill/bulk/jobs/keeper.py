"""Keeps one execution's lease while it writes, and tells it when to stop. Knows no rq and no rows.

A thread renews. The execution asks: it gets an answer only while its lease is sure. When the server is away for longer
than a lease lasts, somebody else may have taken the run, so the execution stands still until it is known.
"""

import threading
import time
import uuid
from collections.abc import Callable
from typing import Self

from tokenmill.wire.errors import TokenmillError, UnavailableError
from tokenmill.wire.store import RunTransitions, Store

MAX_INTERVAL_S = 1.0  # between renewals, so between a wish to stop and its effect, whatever the lease


class LeaseLostError(TokenmillError):
    """Another execution has the run: this one writes nothing any more."""


class LeaseKeeper:
    """A lease that is held; a context manager that gives it back. `acquire` makes one."""

    def __init__(self, store: Store, runs: RunTransitions, run_id: str, owner: str, fence: str, asked_s: float) -> None:
        self.has_progress = False  # a row was finished: its execution's death says nothing against the run
        self._store = store
        self._runs = runs
        self._run_id = run_id
        self._owner = owner
        self._fence = fence
        self._ttl_s = runs.ttl_ms / 1000
        self._valid_until_s = asked_s + self._ttl_s
        self._is_lost = False
        self._is_stop_wanted = False
        self._is_over = threading.Event()
        self._on_beat: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._keep, name=f"lease of {run_id}", daemon=True)

    @classmethod
    def acquire(cls, store: Store, runs: RunTransitions, run_id: str) -> Self | None:
        """None while another execution has the run."""
        owner, asked_s = uuid.uuid4().hex, time.monotonic()
        fence = store.run(runs.acquire(run_id, owner))
        return None if fence is None else cls(store, runs, run_id, owner, fence, asked_s)

    def on_beat(self, action: Callable[[], None]) -> None:
        """To be called after each renewal, by the keeper's thread."""
        self._on_beat = action

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        if not self._is_lost:
            self._release()

    @property
    def is_lost(self) -> bool:
        return self._is_lost

    @property
    def is_stop_wanted(self) -> bool:
        return self._is_stop_wanted

    def check(self, *, is_leaving: Callable[[], bool] = lambda: False) -> None:
        """Returns while the lease is held, and waits while that is not known. LeaseLostError: it is not."""
        while True:
            if self._is_lost or (self._is_unsure() and is_leaving()):
                raise LeaseLostError(f"another bulk worker has taken run {self._run_id}")
            if not self._is_unsure():
                return
            self._is_over.wait(0.05)

    def _is_unsure(self) -> bool:
        return time.monotonic() > self._valid_until_s

    def _keep(self) -> None:
        while not self._is_over.wait(min(MAX_INTERVAL_S, self._ttl_s / 3)):
            if not self._renew():
                return
            self._on_beat()

    def _renew(self) -> bool:
        """False when there is nothing left to renew."""
        asked_s = time.monotonic()
        call = self._runs.renew(self._run_id, self._owner, self._fence, has_progress=self.has_progress)
        try:
            renewal = self._store.run(call)
        except UnavailableError:
            return True  # tried again at the next turn; meanwhile the lease runs out by our own clock
        self._is_lost = not renewal.is_held
        self._is_stop_wanted = self._is_stop_wanted or renewal.is_stop_wanted
        self._valid_until_s = asked_s + self._ttl_s
        return renewal.is_held

    def _release(self) -> None:
        try:
            self._store.run(self._runs.release(self._run_id, self._owner, self._fence))
        except UnavailableError:
            return  # it runs out by itself, and who finds it then sees that the run is over
