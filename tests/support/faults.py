"""Connections that fail on purpose: before a call is sent, or after it was carried out and its reply is dropped.

A call is one round trip, a whole pipeline or one blocking read; greetings of a new connection do not count. Works below
redis-py's clients, so that everything built on them is covered.
"""

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import hiredis
import redis
from redis.exceptions import ConnectionError, RedisError

from tests.support.ledger import Ledger

Moment = Literal["before", "after"]


class Plan(Protocol):
    """Which calls fail. Thread-safe: a client's connections share it."""

    def next_fault(self) -> Moment | None: ...


@dataclass
class FailOnce:
    """The `at`-th call fails (the first is 1); `num_calls` tells how many there were."""

    at: int
    moment: Moment
    num_calls: int = 0
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def next_fault(self) -> Moment | None:
        with self._lock:
            self.num_calls += 1
            return self.moment if self.num_calls == self.at else None


class FailAtRandom:
    """Each call fails with `probability`, half of them before and half after."""

    def __init__(self, seed: int, probability: float) -> None:
        self._random = random.Random(seed)
        self._probability = probability
        self._lock = threading.Lock()
        self.num_calls = self.num_faults = 0

    def next_fault(self) -> Moment | None:
        with self._lock:
            self.num_calls += 1
            if self._random.random() >= self._probability:
                return None
            self.num_faults += 1
            return self._random.choice(("before", "after"))


def sabotage(client: redis.Redis, plan: Plan, ledger: Ledger | None = None) -> redis.Redis:
    """The same client; from its next connection on its calls fail as planned, and the ledger hears of all of them."""
    pool = client.connection_pool
    base = pool.connection_class
    pool.connection_class = type(f"Failing{base.__name__}", (_Failing, base), {"plan": plan, "ledger": ledger})
    pool.disconnect()
    return client


def failing_connect(
    connect: Callable[..., redis.Redis], plans: Sequence[Plan | None], ledger: Ledger | None = None
) -> Callable[..., redis.Redis]:
    """`connect`, whose first client follows the first plan, and so on; None and later ones do not fail."""
    to_come = iter(plans)

    def connect_and_fail(*args: Any, **options: Any) -> redis.Redis:
        return sabotage(connect(*args, **options), next(to_come, None) or FailOnce(0, "before"), ledger)

    return connect_and_fail


class _Failing:
    """Mixed into a connection class of redis-py, which it knows only by its methods."""

    plan: Plan
    ledger: Ledger | None
    _is_greeting = False
    _is_to_lose = False

    def on_connect_check_health(self, *args: Any, **options: Any) -> Any:
        self._is_greeting = True
        self._is_to_lose = False
        self._asked: list[list[bytes]] = []
        try:
            return super().on_connect_check_health(*args, **options)  # type: ignore[misc]  # of the class beside it
        finally:
            self._is_greeting = False

    def send_packed_command(self, command: Any, *args: Any, **options: Any) -> Any:
        send = super().send_packed_command  # type: ignore[misc]  # of the class beside it
        if self._is_greeting:
            return send(command, *args, **options)
        fault = self.plan.next_fault()
        if fault == "before":
            self.disconnect()  # type: ignore[attr-defined]  # of the class beside it
            raise ConnectionError("broken on purpose before the call was sent")
        result = send(command, *args, **options)
        self._asked += parse_commands(command)  # beside what was sent before and is not answered yet
        self._is_to_lose |= fault == "after"
        return result

    def read_response(self, *args: Any, **options: Any) -> Any:
        if self._is_greeting:
            return super().read_response(*args, **options)  # type: ignore[misc]  # of the class beside it
        if self._is_to_lose:
            self._lose(*args, **options)
        return self._read(*args, **options)

    def _lose(self, *args: Any, **options: Any) -> None:
        """Wait until all that was asked is done, then behave as if no word of it had come."""
        self._is_to_lose = False
        while self._asked:
            try:
                self._read(*args, **options)
            except RedisError as error:
                if isinstance(error, ConnectionError):
                    raise
        self.disconnect()  # type: ignore[attr-defined]  # of the class beside it
        raise ConnectionError("broken on purpose after the call was carried out")

    def _read(self, *args: Any, **options: Any) -> Any:
        command = self._asked.pop(0) if self._asked else []
        reply = super().read_response(*args, **options)  # type: ignore[misc]  # of the class beside it
        if self.ledger is not None and command:
            self.ledger.observe(command, reply)
        return reply


def parse_commands(packed: bytes | str | Sequence[bytes]) -> list[list[bytes]]:
    """The commands in what redis-py is about to send."""
    reader = hiredis.Reader()
    for part in [packed] if isinstance(packed, bytes | str) else packed:
        reader.feed(part.encode() if isinstance(part, str) else bytes(part))
    commands = []
    while isinstance(command := reader.gets(), list):
        commands.append(command)
    return commands
