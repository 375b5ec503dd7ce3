"""Where a run's rows go and their answers come from: one partition of one queue. Knows no files and no screen.

Every request of a run belongs to the run's group, whose fan-in stream names each one as it becomes final: so one
blocking read waits for all rows in flight. What the stream cannot tell (it was final before we asked, or the server
lost it) is found by looking at the jobs themselves: when they are sent, and whenever nothing was heard for a while.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar

from redis.exceptions import ResponseError

from tokenmill.bulk.planner import OutgoingRow
from tokenmill.bulk.run import Answer, SendStatus
from tokenmill.reader import ResultReader
from tokenmill.wire.errors import UnavailableError
from tokenmill.wire.keys import MAX_JOBS_PER_CALL, PRIORITY_LANES, Keys
from tokenmill.wire.messages import Completion
from tokenmill.wire.store import Command, Store, Submission, SubmitReply, Transitions, checked, connect

T = TypeVar("T")

FORGET_AFTER_S = 60  # results that are safe on disk stay this long, for whoever looks at the queue with redis-cli
SILENCE_S = 5.0  # nothing heard for so long: look at the jobs themselves
MAX_READ = 1_000  # fan-in entries at once; bounds the memory for answers
OUTAGE_S = 60.0  # how long a server that was there may be away, for a restart or a failover
RETRY_INTERVAL_S = 0.5

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
        self._fan_in = self._keys.group_done(group)
        self._on_idle = on_idle
        self._in_flight: dict[str, OutgoingRow] = {}
        self._final: deque[str] = deque()  # final when they were sent
        self._cursor = self._last_entry_id()
        self._heard_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    # --- the RequestQueue protocol ---

    def send(self, rows: Sequence[OutgoingRow]) -> list[SendStatus]:
        return [status for part in _parts(rows) for status in self._send_part(part)]

    def wait(self, timeout_s: float) -> list[Answer]:
        ready = self._take_final() or self._read_fan_in(timeout_s)
        if ready:
            self._heard_s = time.monotonic()
        elif time.monotonic() - self._heard_s > SILENCE_S:
            ready = self._look_at_jobs()
            self._heard_s = time.monotonic()
        else:
            self._on_idle()
        return self._read_answers(ready)

    def forget(self, request_ids: Sequence[str]) -> None:
        keys = [key for name in request_ids for key in (self._keys.job(name), self._keys.result(name))]
        commands: list[Command] = [("EXPIRE", key, FORGET_AFTER_S) for key in keys]
        self._patiently(lambda: self._store.send([*commands, ("XTRIM", self._fan_in, "MINID", self._cursor)]))

    # --- sending ---

    def _send_part(self, rows: Sequence[OutgoingRow]) -> list[SendStatus]:
        lane = PRIORITY_LANES["bulk"]
        call = self._transitions.submit([Submission.of(row.request_id, row.request, lane) for row in rows])
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

    def _look_at_jobs(self) -> list[str]:
        """Final ones among those in flight. A job that is gone was lost by the server: it is sent again."""
        names = list(self._in_flight)
        states = self._ask_all([("HGET", self._keys.job(name), "state") for name in names])
        lost = [self._in_flight[name] for name, state in zip(names, states, strict=True) if state is None]
        self.send(lost)
        finals = (b"done", *(state.encode() for state in FINAL_FAILURES))
        return [name for name, state in zip(names, states, strict=True) if state in finals]

    def _last_entry_id(self) -> str:
        entries = self._store.send([("XREVRANGE", self._fan_in, "+", "-", "COUNT", 1)])[0]
        return entries[0][0].decode() if isinstance(entries, list) and entries else "0-0"

    # --- answers ---

    def _read_answers(self, names: Iterable[str]) -> list[Answer]:
        names = list(dict.fromkeys(names))
        streams = self._ask_all([("XRANGE", self._keys.result(name), "-", "+") for name in names])
        answers = [_fold(name, entries) for name, entries in zip(names, streams, strict=True)]
        for answer in answers:
            del self._in_flight[answer.request_id]
        return answers

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
                if time.monotonic() > give_up_at:
                    raise
                self._on_idle()
                time.sleep(RETRY_INTERVAL_S)


def _parts(rows: Sequence[OutgoingRow]) -> Iterator[Sequence[OutgoingRow]]:
    for start in range(0, len(rows), MAX_JOBS_PER_CALL):
        yield rows[start : start + MAX_JOBS_PER_CALL]


def _fold(request_id: str, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> Answer:
    """A result stream, from its first entry to its terminal one."""
    reader = ResultReader(request_id)
    for entry_id, fields in entries:
        reader.feed(entry_id.decode(), fields)
    if reader.completion is None:
        return Answer(request_id=request_id, error=("lost", "its result expired before it was read"))
    return _answer(reader.completion)


def _answer(completion: Completion) -> Answer:
    return Answer(
        request_id=completion.request_id,
        text=completion.text,
        token_ids=tuple(completion.token_ids),
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.usage.prompt_tokens,
        completion_tokens=completion.usage.completion_tokens,
        error=_error(completion),
    )


def _error(completion: Completion) -> tuple[str, str] | None:
    """A row counts as done when the model ended it, not when somebody else did."""
    if completion.error is not None:
        return completion.error.code, completion.error.message
    if completion.finish_reason in ("stop", "length"):
        return None
    return completion.finish_reason, f"the request was {completion.finish_reason}"
