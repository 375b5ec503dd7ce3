"""Reading the lanes of one partition: order, fairness, waiting, and one's own history. Knows no job and no thread."""

import logging
from collections.abc import Iterable, Iterator, Sequence

from redis.exceptions import ResponseError
from tokenmill.wire.keys import FETCH_ORDER, GROUP, Keys, Lane
from tokenmill.wire.store import Delivery, Store, Transitions, translate

FAIR_PASS = 16  # every so many passes the lowest lane comes first, so that a flood above cannot starve it
HISTORY_PAGE = 100  # entries of one's own history in one reply

log = logging.getLogger(__name__)


class Lanes:
    """Every method is one or a few commands; a lost consumer group is made again on the way."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store = store
        self._keys = keys
        self._transitions = Transitions(keys)
        self._key_of = {lane: keys.lane(lane) for lane in Lane}
        self._lane_of = {key.encode(): lane for lane, key in self._key_of.items()}
        self._num_passes = 0

    def create_groups(self) -> None:
        """At 0, never at `$`: what was queued before the first worker came is served too."""
        for lane in Lane:
            try:
                self._store.client.xgroup_create(self._keys.lane(lane), GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise translate(error) from error

    def read(self, worker: str, count: int) -> list[Delivery]:
        """Up to `count` entries that nobody has, from the first lane on; returns at once."""
        try:
            return self._store.run(self._transitions.fetch(worker, count, self._order()))
        except ResponseError as error:
            self._heal(error)
            return []

    def wait(self, worker: str, timeout_s: float, *, count: int = 1) -> list[Delivery]:
        """Block until any lane has an entry. COUNT is per stream, so up to `count` of each lane may come."""
        return self._read(worker, FETCH_ORDER, after=">", count=count, block_ms=int(timeout_s * 1000))

    def history(self, worker: str, lanes: Iterable[Lane] = FETCH_ORDER) -> Iterator[Delivery]:
        """Entries delivered to this worker and never acked: those it runs, and those whose delivery got lost."""
        for lane in lanes:
            after = "0"
            while page := self._read(worker, [lane], after=after, count=HISTORY_PAGE):
                yield from page
                after = page[-1].entry_id

    def forget(self, delivery: Delivery) -> None:
        """Ack an entry that was deleted while it was pending: it has no fields left, and nothing to do for anyone."""
        self._store.client.xack(self._keys.lane(delivery.lane), GROUP, delivery.entry_id)

    def _order(self) -> Sequence[Lane]:
        self._num_passes += 1
        return FETCH_ORDER if self._num_passes % FAIR_PASS else FETCH_ORDER[::-1]

    def _read(
        self, worker: str, lanes: Sequence[Lane], *, after: str, count: int, block_ms: int | None = None
    ) -> list[Delivery]:
        keys = list(map(self._key_of.__getitem__, lanes))
        waiting = () if block_ms is None else ("BLOCK", block_ms)
        reading = ("XREADGROUP", "GROUP", GROUP, worker, "COUNT", count, *waiting, "STREAMS", *keys)
        (reply,) = self._store.send([(*reading, *[after] * len(keys))])
        if isinstance(reply, Exception):
            self._heal(reply)
            return []
        return [
            Delivery(self._lane_of[stream], entry_id.decode(), fields)
            for stream, entries in reply
            for entry_id, fields in entries
        ]

    def _heal(self, error: Exception) -> None:
        """The server lost the groups, or somebody destroyed them: the next read finds them. Raises any other error."""
        if "NOGROUP" not in str(error):
            raise translate(error) from error
        log.warning("the server lost its data, or the consumer groups were destroyed: they are made again")
        self.create_groups()
