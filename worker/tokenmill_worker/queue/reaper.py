"""Taking over what dead workers held, and settling what waited too long. Knows no lease of its own and no engine."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from tokenmill.wire.errors import DecodeError, InvalidRequestError
from tokenmill.wire.store import Claim, Delivery, Store, Transitions

from tokenmill_worker.queue.burial import burial, claim_of
from tokenmill_worker.queue.isolation import CODE, explain, is_broken

GOOD_RENEWALS = 2  # of one's own, before others are judged: after an outage every lease looks dead at once
UPTIME_IN_TTLS = 2  # so long a server must be up, that every live worker has had the time to renew
STALE_IN_TTLS = 2 / 3  # with one's own renewal that old, others have had no chance to renew either
MAX_ROUNDS = 10  # of MAX_JOBS_PER_CALL entries, in one go: the rest waits for the next turn

log = logging.getLogger(__name__)


class Reaper:
    """One dead worker a turn; every step is safe to repeat, also by another reaper, also after the reaper's death."""

    def __init__(
        self, store: Store, transitions: Transitions, *, ttl_s: float, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._transitions = transitions
        self._ttl_s = ttl_s
        self._now_s = now_s
        self._renewed_at_s = now_s()
        self._num_good_renewals = 0
        self.num_reaped = 0

    def trust(self) -> None:
        """One's own lease was renewed, in time: what one sees of others' leases is worth that much more."""
        if self._is_stale():
            self._num_good_renewals = 0
        self._renewed_at_s = self._now_s()
        self._num_good_renewals += 1

    def distrust(self) -> None:
        """The server was away, or our own lease was lost."""
        self._num_good_renewals = 0

    def sweep(self) -> None:
        self._store.run(self._transitions.sweep())

    def next_due_s(self) -> float | None:
        """In how many seconds somebody may be found dead who is not now."""
        left_ms = self._store.run(self._transitions.next_lease_end())
        return None if left_ms is None else (left_ms + 1) / 1000

    def reap_one(self, reaper: str) -> bool:
        """Take over a worker whose lease ran out, if there is one; is there another? FencedError: our own is gone."""
        if self._num_good_renewals < GOOD_RENEWALS or self._uptime_s() < UPTIME_IN_TTLS * self._ttl_s:
            return False
        others = [name for name in self._store.run(self._transitions.find_dead()) if name != reaper]
        if not others or self._is_stale():  # the answer may have been long in coming
            return False
        self._take_over(reaper, others[0])
        return len(others) > 1

    def _take_over(self, reaper: str, dead: str) -> None:
        if not self._store.run(self._transitions.mark_dead(reaper, dead)):
            return  # it renewed in the meantime
        for _ in range(MAX_ROUNDS):
            held = self._store.run(self._transitions.held_by(dead))
            if not held:
                self._store.run(self._transitions.leave(dead))
                break
            claims = list(self._claims(dead, held))
            if claims:
                self.num_reaped += self._reap(reaper, dead, claims)
        log.warning("took over from %s, which is gone", dead)

    def _reap(self, reaper: str, dead: str, claims: Sequence[Claim]) -> int:
        """Where one of the claims breaks the call, each is reaped alone, and that one is ended."""
        (outcome,) = self._store.attempt([self._transitions.reap(reaper, dead, claims)])
        if not isinstance(outcome, Exception):
            return outcome
        if not is_broken(outcome):
            raise outcome
        if len(claims) > 1:
            return sum(self._reap(reaper, dead, [claim]) for claim in claims)
        log.error("request %s cannot be taken over: %s", claims[0].request_id, outcome)
        self._store.run(self._transitions.condemn(dead, claims[0], code=CODE, message=explain(outcome)))
        return 0

    def _claims(self, dead: str, held: Sequence[Delivery]) -> Iterator[Claim]:
        """Of entries that are requests; the others are buried in the dead worker's stead."""
        for delivery in held:
            try:
                yield claim_of(self._transitions.keys, delivery)
            except (DecodeError, InvalidRequestError) as error:
                self._store.run(burial(self._transitions, dead, delivery, error))

    def _is_stale(self) -> bool:
        """A server that hung makes every lease look dead, and no error tells of it when it answers after all."""
        return self._now_s() - self._renewed_at_s > STALE_IN_TTLS * self._ttl_s

    def _uptime_s(self) -> float:
        return float(self._store.client.info("server")["uptime_in_seconds"])
