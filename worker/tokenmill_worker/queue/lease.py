"""The worker's right to hold requests: a name of its own, renewed in time, and the takeover of those who stopped.

Its own thread and its own connection, so that neither a long step nor a slow publication can cost the lease.
"""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from tokenmill.wire.errors import FencedError
from tokenmill.wire.store import Store, Transitions

from tokenmill_worker.queue.holdings import Holdings
from tokenmill_worker.queue.isolation import BROKEN
from tokenmill_worker.queue.outage import ANSWER_TIMEOUT_S, OUTAGE, Backoff, insist
from tokenmill_worker.queue.reaper import Reaper
from tokenmill_worker.queue.service import Service
from tokenmill_worker.queue.stall import StallWatch

RENEWALS_PER_TTL = 3  # two may get lost before the lease does
REAPS_PER_TTL = 2  # at least
HOUSEKEEPING_S = 1.0  # statistics shown, passed deadlines swept, the dead looked for
PICTURE_S = 0.25  # between pictures of the batch, while somebody looks: to the eye that moves

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseStatistics:
    worker: str
    num_renewals: int = 0
    num_fenced: int = 0
    num_reaped: int = 0


class Easel(Protocol):
    """Where pictures of the batch come from."""

    def watch(self, is_wanted: bool) -> None:
        """Somebody looks, or nobody does."""
        ...

    def picture(self) -> bytes | None:
        """None: nobody looks."""
        ...


@dataclass(slots=True)
class _Duty:
    """Something to do every `interval_s`, or after the seconds that it returns if those are less; at first at once."""

    interval_s: float
    action: Callable[[], float | None]
    due_s: float = 0.0


def fresh_name() -> str:
    """An incarnation, never used before: should a rollback give a fence number twice, the owners still differ."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


class Lease(Service):
    """`worker` is the name under which requests are claimed; it changes when the lease was lost and taken anew.

    `describe` gives the fields of the worker's info hash, `title` a line for people, `easel` the batch's picture: for
    one lease of a worker, where it has several.
    """

    def __init__(
        self,
        store: Store,
        transitions: Transitions,
        holdings: Holdings,
        *,
        ttl_s: float,
        stall_watch: StallWatch,
        describe: Callable[[], Mapping[str, str]],
        title: str,
        easel: Easel | None = None,
    ) -> None:
        super().__init__("lease", stop_timeout_s=ANSWER_TIMEOUT_S)
        self.worker = fresh_name()
        self._ttl_ms = int(ttl_s * 1000)
        self._store = store
        self._transitions = transitions
        self._holdings = holdings
        self._stall_watch = stall_watch
        self._describe = describe
        self._title = title
        self._easel = easel
        self._reaper = Reaper(store, transitions, ttl_s=ttl_s)
        self._soon = threading.Event()
        self._num_renewals = self._num_fenced = 0
        self.is_given_up = False  # the engine is stuck: others get what is held, and what is read
        self._renewal = _Duty(ttl_s / RENEWALS_PER_TTL, self._renew)
        self._duties = [
            self._renewal,
            _Duty(HOUSEKEEPING_S, self._keep_house),
            _Duty(min(ttl_s / REAPS_PER_TTL, HOUSEKEEPING_S), self._reap),
            _Duty(HOUSEKEEPING_S, self._show),
        ]

    def start(self) -> None:
        """The first registration is the caller's own: without a server there is nothing to start."""
        self._register()
        log.info("%s is ready: %s", self.worker, self._title)
        super().start()

    def leave(self) -> None:
        """After `stop`, with nothing held any more; what is still held stays until others take it over."""
        try:
            if not insist(lambda: self._store.run(self._transitions.leave(self.worker))):
                log.warning("%s leaves requests behind; they are taken over when its lease ends", self.worker)
        except OUTAGE as error:
            log.warning("%s could not say goodbye: %s", self.worker, error)

    def renew_soon(self) -> None:
        """Somebody was told that we are fenced: find out now, not at the next turn."""
        self._renewal.due_s = 0.0
        self._soon.set()

    def statistics(self) -> LeaseStatistics:
        return LeaseStatistics(self.worker, self._num_renewals, self._num_fenced, self._reaper.num_reaped)

    # The thread

    def _run(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                self._do_what_is_due()
                backoff.reset()
            except OUTAGE as error:
                log.warning("the lease waits for the server: %s", error)
                self._reaper.distrust()
                backoff.wait(self._stopping)
            except FencedError:
                self._renewal.due_s = 0.0
            self._soon.wait(max(0.0, min(duty.due_s for duty in self._duties) - time.monotonic()))
            self._soon.clear()

    def _wake(self) -> None:
        self._soon.set()

    def _do_what_is_due(self) -> None:
        for duty in self._duties:
            if duty.due_s <= time.monotonic():
                sooner_s = self._do(duty)
                interval_s = duty.interval_s if sooner_s is None else min(duty.interval_s, sooner_s)
                duty.due_s = time.monotonic() + interval_s

    def _do(self, duty: _Duty) -> float | None:
        """What the server refuses is tried again at the next turn, and keeps no other duty from being done."""
        try:
            return duty.action()
        except OUTAGE:
            raise
        except BROKEN as error:
            log.error("the server refuses a duty of the lease: %s", error)
            return None

    # Duties; each may raise an OUTAGE, and is then due again at once

    def _renew(self) -> None:
        self.is_given_up = self._stall_watch.is_stalled()
        if self.is_given_up:
            log.error("the engine has work and makes no step: the lease is not renewed")
            return
        renewal = self._store.run(self._transitions.renew(self.worker, self._ttl_ms))
        if renewal.is_fenced:
            self._start_over()
            return
        self._num_renewals += 1
        self._reaper.trust()
        self._holdings.cancel(renewal.cancelled)

    def _keep_house(self) -> None:
        is_watched = self._store.run(self._transitions.inform(self.worker, dict(self._describe())))
        if self._easel is not None:
            self._easel.watch(is_watched)
        self._reaper.sweep()

    def _show(self) -> float | None:
        picture = self._easel.picture() if self._easel is not None else None
        if picture is None:
            return None
        self._store.run(self._transitions.show(self.worker, picture))
        return PICTURE_S

    def _reap(self) -> float | None:
        if self._reaper.reap_one(self.worker):
            return 0.0
        return self._reaper.next_due_s()  # a takeover comes when a lease ends, not up to an interval later

    def _start_over(self) -> None:
        """The lease ran out, or the server forgot it: all that was held belongs to others. Begin as somebody new."""
        before, num_dropped = self.worker, len(self._holdings)
        self._num_fenced += 1
        self._reaper.distrust()
        self._holdings.fence_all()
        self.worker = fresh_name()
        self._register()
        log.warning(
            "%s lost its lease, to a takeover or with the server's data: %d requests dropped, it goes on as %s",
            before,
            num_dropped,
            self.worker,
        )

    def _register(self) -> None:
        if self._transitions.keys.partition == 0:
            self._store.run(self._transitions.agree())  # again each time: the server may have lost its data
        self._store.run(self._transitions.register(self.worker, dict(self._describe()), self._ttl_ms))
