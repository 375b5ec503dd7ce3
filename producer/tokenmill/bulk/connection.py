"""Where a run's rows go and their answers come from: one partition of one queue. Knows no files and no screen.

Every request of a run belongs to the run's group, whose fan-in stream names each one as it becomes final: so one
blocking read waits for all rows in flight. What the stream cannot tell (it was final before we asked, or the server
lost it) is found by looking at the jobs themselves: when they are sent, and whenever nothing was heard for a while.
"""

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar

from redis.exceptions import ResponseError

from tokenmill.bulk.answers import Answer, Entry, fold
from tokenmill.bulk.leftovers import cancel_group
from tokenmill.bulk.planner import OutgoingRow
from tokenmill.bulk.pulse import WorkerTold
from tokenmill.bulk.run import SendStatus
from tokenmill.wire.errors import UnavailableError
from tokenmill.wire.keys import MAX_JOBS_PER_CALL, Keys
from tokenmill.wire.store import Command, Store, SubmitReply, Transitions, checked, connect

T = TypeVar("T")

FORGET_AFTER_S = 60  # results that are safe on disk stay this long, for whoever looks at the queue with redis-cli
SILENCE_S = 2.0  # nothing heard for so long: look at the jobs themselves; a server that lost them costs no more
LOOK_INTERVAL_S = 30.0  # and this often in any case: a server may lose some of its data and not the connection
MAX_TIMES_LOST = 3  # a row that is told as done and has no result is sent again so often
MAX_READ = 1_000  # fan-in entries at once; bounds the memory for answers
OUTAGE_S = 60.0  # how long a server that was there may be away, for a restart or a failover
RETRY_INTERVAL_S = 0.5

# As a worker's info calls them.
_INFO = {field: field for field in WorkerTold._fields} | {"num_slots": "max_num_seqs", "decode_steps": "decode_step_ms"}

FINAL_FAILURES = ("failed", "cancelled", "expired", "dead")


class QueueConnection:
    """A RequestQueue over a server; a context manager. `on_idle` is called now and then while waiting."""

    def __init__(
        self, url: str, keys: Keys | str = "default", *, group: str, on_idle: Callable[[], None] = lambda: None
    ) -> None:
        """`keys`: of the partition, or the name of a queue that has but one."""
        self._keys = Keys(keys) if isinstance(keys, str) else keys
        self._transitions = Transitions(self._keys)
        self._store = Store(connect(url, key=self._keys.tag, block_s=SILENCE_S))
        self._group = group
        self._fan_in = self._keys.group_done(group)
        self._on_idle = on_idle
        self._in_flight: dict[str, OutgoingRow] = {}
        self._final: deque[str] = deque()  # final when they were sent
        self._times_lost: Counter[str] = Counter()
        self._cursor = self._last_entry_id()
        self._heard_s = self._looked_s = time.monotonic()
        self._was_away = False  # the server, since the last look at the jobs: it may have come back empty

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    # --- the RequestQueue protocol ---

    def send(self, rows: Sequence[OutgoingRow]) -> list[SendStatus]:
        return [status for part in _parts(rows) for status in self._send_part(part)]

    def wait(self, timeout_s: float) -> list[Answer]:
        ready = self._look_at_jobs() if self._is_look_due() else self._hear(timeout_s)
        if ready:
            self._heard_s = time.monotonic()
        else:
            self._on_idle()
        return self._read_answers(ready)

    def workers(self) -> dict[str, WorkerTold]:
        return self._patiently(self._read_workers)

    def abandon(self) -> None:
        """All of the run, not only what this execution has sent."""
        cancel_group(self._store, self._keys, self._group)

    def forget(self, request_ids: Sequence[str]) -> None:
        keys = [key for name in request_ids for key in (self._keys.job(name), self._keys.result(name))]
        commands: list[Command] = [("EXPIRE", key, FORGET_AFTER_S) for key in keys]
        self._patiently(lambda: self._store.send([*commands, ("XTRIM", self._fan_in, "MINID", self._cursor)]))

    # --- sending ---

    def _send_part(self, rows: Sequence[OutgoingRow]) -> list[SendStatus]:
        call = self._transitions.submit([row.submission for row in rows])
        replies = self._patiently(lambda: self._store.run(call))
        return [self._note(row, reply) for row, reply in zip(rows, replies, strict=True)]

    def _note(self, row: OutgoingRow, reply: SubmitReply) -> SendStatus:
        if reply.status == "busy":
            return "busy"
        if reply.status == "conflict" or reply.state in FINAL_FAILURES:
            return "spent"
        self._in_flight[row.request_id] = row
        if reply.state == "done":
            self._final.append(row.request_id)
        return "taken"

    # --- waiting ---

    def _hear(self, timeout_s: float) -> list[str]:
        return self._take_final() or self._read_fan_in(timeout_s)

    def _take_final(self) -> list[str]:
        return [self._final.popleft() for _ in range(min(len(self._final), MAX_READ))]

    def _read_fan_in(self, timeout_s: float) -> list[str]:
        """Requests of ours that became final since the last look; waits for the first."""
        block = ("XREAD", "COUNT", 1, "BLOCK", max(1, round(timeout_s * 1_000)), "STREAMS", self._fan_in, self._cursor)
        self._ask(block)
        entries = self._ask(("XRANGE", self._fan_in, f"({self._cursor}", "+", "COUNT", MAX_READ))
        if entries:
            self._cursor = entries[-1][0].decode()
        names = (fields[b"id"].decode() for _, fields in entries)
        return [name for name in names if name in self._in_flight]

    def _is_look_due(self) -> bool:
        now_s = time.monotonic()
        return self._was_away or now_s - self._heard_s > SILENCE_S or now_s - self._looked_s > LOOK_INTERVAL_S

    def _look_at_jobs(self) -> list[str]:
        """Final ones among those in flight. A job that is gone was lost by the server: it is sent again."""
        self._was_away = False
        self._heard_s = self._looked_s = time.monotonic()
        names = list(self._in_flight)
        states = self._ask_all([("HGET", self._keys.job(name), "state") for name in names])
        lost = [self._in_flight[name] for name, state in zip(names, states, strict=True) if state is None]
        self.send(lost)
        finals = (b"done", *(state.encode() for state in FINAL_FAILURES))
        return [name for name, state in zip(names, states, strict=True) if state in finals]

    def _read_workers(self) -> dict[str, WorkerTold]:
        """Of each live worker process."""
        (names,) = self._store.send([("ZRANGE", self._keys.workers, 0, -1)])
        names = [name.decode() for name in names]
        wanted = ("process", *(_INFO[field] for field in WorkerTold._fields))
        replies = (
            self._store.send([("HMGET", self._keys.worker_info(name), *wanted) for name in names]) if names else []
        )
        pairs = zip(names, map(checked, replies), strict=True)
        return {(process or name.encode()).decode(): _told(values) for name, (process, *values) in pairs}

    def _last_entry_id(self) -> str:
        entries = self._store.send([("XREVRANGE", self._fan_in, "+", "-", "COUNT", 1)])[0]
        return entries[0][0].decode() if isinstance(entries, list) and entries else "0-0"

    # --- answers ---

    def _read_answers(self, names: Iterable[str]) -> list[Answer]:
        names = list(dict.fromkeys(names))
        streams = self._ask_all([("XRANGE", self._keys.result(name), "-", "+") for name in names])
        answers = [self._take(name, entries) for name, entries in zip(names, streams, strict=True)]
        return [answer for answer in answers if answer is not None]

    def _take(self, name: str, entries: Sequence[Entry]) -> Answer | None:
        """None: the server lost the result after it had told of it, and the row was sent again."""
        answer = fold(name, entries)
        row = self._in_flight.pop(name)
        if answer is not None:
            return answer
        self._times_lost[name] += 1
        if self._times_lost[name] > MAX_TIMES_LOST:
            return Answer(name, error=("lost", "the server has no result of it, again and again"))
        self.send([row])
        return None

    # --- the server ---

    def _ask(self, command: Command) -> Any:
        return self._ask_all([command])[0]

    def _ask_all(self, commands: Sequence[Command]) -> list[Any]:
        if not commands:
            return []
        try:
            return self._patiently(lambda: [checked(reply) for reply in self._store.send(commands)])
        except ResponseError as error:
            raise UnavailableError(f"the server refuses: {error}") from error

    def _patiently(self, action: Callable[[], T]) -> T:
        """Tries again while the server is away, for a restart's time; what we send may be sent twice."""
        give_up_at = time.monotonic() + OUTAGE_S
        while True:
            try:
                return action()
            except UnavailableError:
                self._was_away = True
                if time.monotonic() > give_up_at:
                    raise
                self._on_idle()
                time.sleep(RETRY_INTERVAL_S)


def _parts(rows: Sequence[OutgoingRow]) -> Iterator[Sequence[OutgoingRow]]:
    for start in range(0, len(rows), MAX_JOBS_PER_CALL):
        yield rows[start : start + MAX_JOBS_PER_CALL]


def _told(values: Sequence[bytes | None]) -> WorkerTold:
    """What a worker leaves out counts as 0: one of another version."""
    num_slots, told_s, *totals = (float(value or 0) for value in values[:-1])
    steps, decode, prefill, running = map(int, totals)
    decode_steps = tuple((float(rows), float(ms) / 1000) for rows, ms in json.loads(values[-1] or b"[]"))
    return WorkerTold(int(num_slots), told_s, steps, decode, prefill, running, decode_steps)
