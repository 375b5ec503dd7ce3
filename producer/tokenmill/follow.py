"""How a result is followed to its end: what to read next, when to try again and when to give up. Does no IO itself.

`Follower.steps()` is a generator of effects: `Read` asks for an answer, `Pause` for patience, a Delta is news for the
caller. The blocking and the asyncio client carry the effects out, and differ in nothing else.
"""

import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tokenmill.reader import ResultReader
from tokenmill.wire.errors import (
    InvalidRequestError,
    JobLostError,
    ResultTimeoutError,
    UnavailableError,
    UnknownRequestError,
)
from tokenmill.wire.keys import Keys, Lane
from tokenmill.wire.messages import FINAL_STATES, Completion, Delta
from tokenmill.wire.store import Command, checked

BLOCK_S = 5.0  # one blocking read; after each the job itself is looked at, so that a lost one is noticed
FIRST_BLOCK_S = 1.0  # the first read of an id that we have not seen ourselves: it may be a typing error
UNSEEN_S = 60.0  # how long such an id may stay unseen while the queue has entries: one may be its raw entry
OUTAGE_S = 60.0  # a server that was there may be away this long: a restart, a failover
NUM_SEATS = 64  # a server has 10,000 connections for everybody; thousands may wait for a result at once
WAKES_PER_S = 3_000  # of all readers without a seat together, each to see whether somebody found something for it
STREAMS_PER_S = 50_000  # looked at for all of them together: a twentieth of the server, however many wait
MIN_POLL_S = 0.02
LOOK_COUNT = 100  # entries of each stream in one such look: bounds memory
READ_COUNT = 1_000  # entries a read returns: bounds memory for a long replay

_ENTRY_ID = re.compile(r"(0|[1-9][0-9]{0,19})-[0-9]{1,19}")
_DEFAULT_ID = re.compile(r"([0-9q])-([0-9]+-[0-9]+)")


@dataclass(frozen=True, slots=True)
class Read:
    """Send these in one batch; the answer is their replies, or the UnavailableError that came instead.

    `block_s`: how long it may block, so that it goes over a connection of its own, or is joined with others.
    """

    commands: Sequence[Command]
    block_s: float = 0.0

    @property
    def is_blocking(self) -> bool:
        return self.block_s > 0


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


class Seats:
    """How many readers of one client may block at once, each holding a connection. Thread-safe.

    The others stand: each wakes now and then, and whoever finds that it is time looks for all who stand, with one read
    of many streams. So waiting costs about the same however many wait.
    """

    def __init__(self, num_seats: int = NUM_SEATS) -> None:
        self._num_free = num_seats
        self._standing: dict[str, list[Standing]] = {}  # by result key
        self._num_standing = 0
        self._next_look_s: dict[str, float] = {}  # by partition
        self._lock = threading.Lock()

    def take(self) -> bool:
        with self._lock:
            has_seat = self._num_free > 0
            self._num_free -= has_seat
            return has_seat

    @property
    def has_free(self) -> bool:
        return self._num_free > 0

    def give(self) -> None:
        with self._lock:
            self._num_free += 1

    @contextmanager
    def standing(self, keys: Keys, request_id: str, last_id: str) -> "Iterator[Standing]":
        reader = Standing(keys.tag, keys.result(request_id), last_id)
        with self._lock:
            self._standing.setdefault(reader.key, []).append(reader)
            self._num_standing += 1
        try:
            yield reader
        finally:
            with self._lock:
                self._num_standing -= 1
                self._standing[reader.key].remove(reader)
                if not self._standing[reader.key]:
                    del self._standing[reader.key]

    def pause_s(self) -> float:
        """Until a standing reader wakes again: the more there are, the longer."""
        return max(MIN_POLL_S, self._num_standing / WAKES_PER_S)

    def look(self, tag: str, now_s: float) -> Command | None:
        """The read for all who stand in one partition, if it is time for one."""
        with self._lock:
            if now_s < self._next_look_s.get(tag, 0.0):
                return None
            self._next_look_s[tag] = now_s + max(MIN_POLL_S, self._num_standing / STREAMS_PER_S)
            asked = {
                key: min((reader.last_id for reader in readers), key=split_entry_id)
                for key, readers in self._standing.items()
                if readers[0].tag == tag
            }
        return ("XREAD", "COUNT", LOOK_COUNT, "STREAMS", *asked, *asked.values())

    def share(self, streams: Sequence[tuple[bytes, list[Any]]]) -> None:
        """What a look has found, to whom it concerns; it is found again until they have gone on with it."""
        with self._lock:
            for key, entries in streams:
                for reader in self._standing.get(key.decode(), ()):
                    after = split_entry_id(reader.last_id)
                    reader.news = [entry for entry in entries if split_entry_id(entry[0].decode()) > after]


@dataclass(slots=True, eq=False)
class Standing:
    """One reader without a seat; `news`: entries after `last_id` that somebody found for it."""

    tag: str
    key: str
    last_id: str
    news: list[Any] = field(default_factory=list)


Effect = Read | Pause | Delta
Steps = Generator[Effect, Any, None]
Asking = Generator[Effect, Any, list[Any]]


class Follower:
    """One reading of one result. `is_known`: the caller has seen the server accept it. `wants_deltas`: not the
    completion alone.

    `steps()` ends when the terminal entry was read (then `completion` has it), or stands before `after` already.
    """

    def __init__(
        self,
        keys: Keys,
        request_id: str,
        *,
        after: str | None = None,
        timeout_s: float | None = None,
        is_known: bool = False,
        wants_deltas: bool = True,
        seats: Seats | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._request_id = request_id
        after = "0-0" if after is None else checked_entry_id(after)
        self._reader = ResultReader(request_id, after=after, wants_deltas=wants_deltas)
        self._is_known = is_known
        self._is_over = False
        self._seats = seats or Seats()
        self._timeout_s = timeout_s
        self._clock = clock
        self._started_s = clock()
        self._outage = _Outage(clock, has_answered=is_known)

    @property
    def partition(self) -> int:
        """Where its reads go."""
        return self._keys.partition

    @property
    def result_key(self) -> str:
        return self._keys.result(self._request_id)

    @property
    def last_id(self) -> str:
        """Of the last entry that was read."""
        return self._reader.last_id

    @property
    def completion(self) -> Completion | None:
        return self._reader.completion

    def steps(self) -> Steps:
        while not self._is_over:
            entries = yield from self._read_on()
            for entry_id, fields in entries:
                delta = self._reader.feed(entry_id.decode(), fields)
                if delta is not None:
                    yield delta
            self._is_over = self._reader.completion is not None
            self._is_known |= bool(entries)
            if not entries:
                yield from self._look_at_job()
                self._check_time()

    def _read_on(self) -> Asking:
        """The entries after the last one; none when none came in the time that one read may take."""
        until_s = self._clock() + self._block_s()
        while True:
            left_s = until_s - self._clock()
            if left_s > 0 and self._seats.take():
                try:
                    return (yield from self._read_entries(left_s))
                finally:
                    self._seats.give()
            entries = yield from self._read_entries(0.0)
            if entries or left_s <= 0:
                return entries
            entries = yield from self._stand(until_s)
            if entries:
                return entries

    def _stand(self, until_s: float) -> Asking:
        """What somebody finds for us, or we for us and others; none when a seat may be free, or the time is over."""
        with self._seats.standing(self._keys, self._request_id, self._reader.last_id) as place:
            while (left_s := until_s - self._clock()) > 0:
                yield Pause(min(self._seats.pause_s(), left_s))
                if place.news or self._seats.has_free:
                    break
                look = self._seats.look(self._keys.tag, self._clock())
                if look is not None:
                    (streams,) = yield from self._ask([look])
                    self._seats.share(streams)
            return place.news

    def _read_entries(self, block_s: float) -> Asking:
        block = ("BLOCK", max(1, round(block_s * 1000))) if block_s > 0 else ()  # 0 would block for ever
        source = ("STREAMS", self._keys.result(self._request_id), self._reader.last_id)
        (streams,) = yield from self._ask([("XREAD", "COUNT", READ_COUNT, *block, *source)], block_s)
        return streams[0][1] if streams else []

    def _block_s(self) -> float:
        block_s = BLOCK_S if self._is_known else FIRST_BLOCK_S
        if self._reader.last_id.endswith("-1"):  # the caller has the terminal entry already: nothing will come
            block_s = 0.0
        return block_s if self._timeout_s is None else min(block_s, self._left_s())

    def _left_s(self) -> float:
        return max(0.0, (self._timeout_s or 0.0) - (self._clock() - self._started_s))

    def _check_time(self) -> None:
        if not self._is_over and self._timeout_s is not None and self._left_s() == 0.0:
            raise ResultTimeoutError(
                self._request_id, f"request {self._request_id!r} is not final after {self._timeout_s:g} s; it goes on"
            )

    def _look_at_job(self) -> Steps:
        """Nothing came: is there anything to wait for?"""
        state, last = yield from self._ask(
            [
                ("HGET", self._keys.job(self._request_id), "state"),
                ("XREVRANGE", self._keys.result(self._request_id), "+", "-", "COUNT", 1),
            ]
        )
        if state is None and not last:
            yield from self._look_for_raw_entry()
            return
        self._is_known = True
        if (state or b"").decode() in FINAL_STATES:
            self._look_at_end(last)

    def _look_at_end(self, last: Sequence[tuple[bytes, object]]) -> None:
        if not last:
            raise self._lost("it is final, but its result stream is gone")
        self._is_over = last[0][0].decode() == self._reader.last_id

    def _look_for_raw_entry(self) -> Steps:
        """A raw entry becomes a job when a worker takes it; until then only its lane knows it."""
        if self._is_known:
            raise self._lost("it was there and is gone: it expired, or the server lost data")
        waiting = yield from self._ask(_raw_entry_commands(self._keys, self._request_id))
        is_patient = self._clock() - self._started_s < UNSEEN_S
        if not any(waiting) or (len(waiting) > 1 and not is_patient):
            raise UnknownRequestError(
                self._request_id,
                f"no request {self._request_id!r} on queue {self._keys.queue!r}: check the id and the queue's name; "
                "results are kept for their result_ttl_s only",
            )

    def _lost(self, reason: str) -> JobLostError:
        return JobLostError(self._request_id, f"request {self._request_id!r} has no result: {reason}")

    def _ask(self, commands: Sequence[Command], block_s: float = 0.0) -> Asking:
        """Replies, however often the connection breaks meanwhile; UnavailableError when the server stays away."""
        while True:
            answer = yield Read(commands, block_s)
            try:
                if isinstance(answer, UnavailableError):
                    raise answer
                replies = [checked(reply) for reply in answer]
            except UnavailableError as error:
                self._check_time()
                yield Pause(self._outage.next_pause_s(error))
            else:
                self._outage.end()
                return replies


class _Outage:
    """Waits that double; a server that never answered is not waited for."""

    def __init__(self, clock: Callable[[], float], *, has_answered: bool) -> None:
        self._clock = clock
        self._has_answered = has_answered
        self._since_s: float | None = None
        self._pause_s = 0.05

    def next_pause_s(self, error: UnavailableError) -> float:
        self._since_s = self._clock() if self._since_s is None else self._since_s
        if not self._has_answered or self._clock() - self._since_s > OUTAGE_S:
            raise error
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, 2.0)
        return pause_s

    def end(self) -> None:
        self._has_answered, self._since_s, self._pause_s = True, None, 0.05


def checked_entry_id(entry_id: str) -> str:
    """A stream entry's id as `Delta.entry_id` gives it, or InvalidRequestError."""
    if _ENTRY_ID.fullmatch(entry_id) and int(entry_id.partition("-")[0]) < 1 << 64:
        return entry_id
    raise InvalidRequestError(f"after must be an entry id such as '17-0', got {entry_id!r}", param="after")


def split_entry_id(entry_id: str) -> tuple[int, int]:
    """As a pair that sorts as streams do."""
    first, _, second = entry_id.partition("-")
    return int(first), int(second)


def _raw_entry_commands(keys: Keys, request_id: str) -> list[Command]:
    """What tells whether a raw entry may be waiting: exact for an id made of lane and entry, else any entry may be."""
    default = _DEFAULT_ID.fullmatch(request_id)
    if default and default[1] in list(Lane):
        return [("XRANGE", keys.lane(Lane(default[1])), default[2], default[2])]
    return [("XLEN", keys.lane(lane)) for lane in Lane]
