"""Those outside the workers in a campaign: who asks, who cancels, and who reads along. They use lossy connections."""

import contextlib
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from redis.exceptions import ConnectionError, RedisError, TimeoutError
from tokenmill import Client
from tokenmill.wire.errors import RequestFailedError, UnavailableError
from tokenmill.wire.keys import PRIORITY_LANES, Lane
from tokenmill.wire.messages import Completion, Request
from tokenmill.wire.store import Store, Submission, Transitions, connect

from tests.chaos.workload import Wish
from tests.support.history import Accepted, Answer, History, Reading, Told
from tests.support.places import Places
from tests.support.recorder import raw_request, told

PATIENCE_S = 60.0
T = TypeVar("T")


def persistently(action: Callable[[], T]) -> T:
    """Until the server says something; a request under one id may be sent again and again."""
    give_up_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return action()
        except (UnavailableError, ConnectionError, TimeoutError):
            if time.monotonic() > give_up_s:
                raise
            threading.Event().wait(0.05)


class Producer:
    """Sends wishes and writes down which were accepted. `lossy_url` is used wherever sending twice is harmless."""

    def __init__(self, history: History, places: Places, url: str, lossy_url: str) -> None:
        self._history = history
        self._places = places
        self._started_s = time.monotonic()
        self._lossy = connect(lossy_url, retries=0)
        self._store = Store(self._lossy)  # one: each keeps a connection for itself
        self._direct = connect(url)
        self._client = Client(lossy_url, places.queue, len(places.all))

    def close(self) -> None:
        for connection in (self._lossy, self._direct, self._client):
            connection.close()

    def send(self, wish: Wish) -> str:
        """Its id, once the server has it."""
        if wish.way == "client":
            persistently(lambda: self._client.submit(id=wish.request_id, **wish.fields))  # type: ignore[arg-type]  # drawn
            return self._accept(wish.request_id, Request.build(**wish.fields).encode().decode(), wish)
        if wish.way == "delayed":
            request = Request.build(**wish.fields)
            new = Submission.of(wish.request_id, request, PRIORITY_LANES[request.priority])
            call = Transitions(self._places.of(wish.request_id)).submit([replace(new, not_before_ms=wish.delay_ms)])
            persistently(lambda: self._store.run(call))
            return self._accept(wish.request_id, request.encode().decode(), wish)
        return self._send_raw(wish)

    def _send_raw(self, wish: Wish) -> str:
        """Without an id, sending twice would be two requests: that goes the safe way."""
        connection = self._direct if wish.way == "raw without id" else self._lossy
        lane, fields = Lane.NORMAL, {name.encode(): value for name, value in wish.entry.items()}
        keys = self._places.all[-1] if wish.way == "raw without id" else self._places.of(wish.request_id)
        entry_id: Any = persistently(lambda: connection.xadd(keys.lane(lane), wish.entry))  # type: ignore[arg-type]  # bytes are values too
        request_id, body, fault = raw_request(lane, entry_id.decode(), fields)
        if fault:
            self._history.guilty.add(request_id)
        return self._accept(request_id, body, wish, fault)

    def _accept(self, request_id: str, body: str, wish: Wish, fault: str = "") -> str:
        at_s = round(time.monotonic() - self._started_s, 3)
        self._history.accepted[request_id] = Accepted(request_id, body, at_s, wish.has_deadline, fault)
        return request_id

    def cancel(self, request_id: str) -> None:
        self._history.cancelled.add(request_id)
        persistently(self._client.job(request_id, partition=self._places.of(request_id).partition).cancel)


class Person(threading.Thread, ABC):
    """A thread that ends when it is asked to, and whose failure is not overlooked."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.is_over = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self.work()
        except BaseException as failure:
            self.failure = failure

    @abstractmethod
    def work(self) -> None:
        """The thread's body; ends soon after `is_over` is set."""

    def finish(self) -> None:
        self.is_over.set()
        self.join(20.0)


class Watcher(Person):
    """Reads all open results together over a lossy connection, and goes on where it stopped when that breaks."""

    def __init__(self, places: Places, url: str, name: str) -> None:
        super().__init__(name)
        self._places = places
        self._connection = connect(url, block_s=0.2, retries=0)
        self._lock = threading.Lock()
        self._open: dict[str, str] = {}  # id -> last entry read
        self.seen: dict[str, list[Told]] = {}

    def watch(self, request_id: str) -> None:
        with self._lock:
            self._open[request_id] = "0-0"
            self.seen[request_id] = []

    @property
    def num_open(self) -> int:
        return len(self._open)

    def open_ids(self) -> list[str]:
        with self._lock:
            return list(self._open)

    def readings(self) -> list[Reading]:
        return [Reading(self.name, request_id, tuple(entries)) for request_id, entries in self.seen.items()]

    def work(self) -> None:
        while not self.is_over.is_set():
            with self._lock:
                after = {
                    self._places.of(request_id).result(request_id): last for request_id, last in self._open.items()
                }
            try:
                streams: Any = self._connection.xread(after, count=500, block=200) if after else []  # type: ignore[arg-type]  # invariant dicts
            except RedisError:
                self.is_over.wait(0.05)
                continue
            for key, entries in streams:
                self._take(key.decode().partition(":r:")[2], told(entries))
            if not streams:
                self.is_over.wait(0.05)
        self._connection.close()

    def _take(self, request_id: str, entries: Sequence[Told]) -> None:
        with self._lock:
            self.seen[request_id] += entries
            self._open[request_id] = entries[-1].entry_id
            if entries[-1].fields["type"] not in ("delta", "reset"):
                del self._open[request_id]


class Listener(Person):
    """A caller of `Client.stream` and `result`, one request after the other."""

    def __init__(self, places: Places, url: str, name: str, seed: int) -> None:
        super().__init__(name)
        self._client = Client(url, places.queue, len(places.all))
        self._random = random.Random(seed)
        self._to_hear: list[str] = []
        self.answers: list[Answer] = []

    def listen(self, request_id: str) -> None:
        self._to_hear.append(request_id)

    def work(self) -> None:
        while not self.is_over.is_set() or self._to_hear:
            if not self._to_hear:
                self.is_over.wait(0.05)
                continue
            self._hear(self._to_hear.pop(self._random.randrange(len(self._to_hear))))
        self._client.close()

    def _hear(self, request_id: str) -> None:
        """A stream that breaks off for good is read again from the start: it says the same."""
        entry_ids = persistently(lambda: self._entry_ids(request_id))
        completion = persistently(lambda: self._completion(request_id))
        self.answers.append(Answer(self.name, request_id, entry_ids, completion.text, completion.finish_reason))

    def _entry_ids(self, request_id: str) -> tuple[str, ...]:
        entry_ids: list[str] = []
        with contextlib.suppress(RequestFailedError):
            entry_ids.extend(delta.entry_id for delta in self._client.job(request_id).stream())
        return tuple(entry_ids)

    def _completion(self, request_id: str) -> Completion:
        try:
            return self._client.job(request_id).result(timeout=PATIENCE_S)
        except RequestFailedError as error:
            return error.completion
