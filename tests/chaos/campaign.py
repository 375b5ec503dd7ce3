"""The campaign: workers under load and every fault there is, in an order drawn from a seed; then the checker's word."""

import contextlib
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis
from tokenmill.wire.store import connect

from tests.chaos.people import Listener, Producer, Watcher
from tests.chaos.workload import Wish, Workload
from tests.support.history import Effort, Event, History
from tests.support.ledger import Ledger
from tests.support.places import Places
from tests.support.processes import Fleet, WorkerProcess
from tests.support.proxy import Proxy
from tests.support.recorder import expect, record
from tests.support.servers import RestartableServer, destroy_groups, kill_connections

FLUSH_S = 0.05
NUM_HELD = 3 + 3  # tokens of a cut character, and of what may begin a stop string of three


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much of everything. `max_open`: requests under way at once."""

    num_requests: int = 2400
    num_kills: int = 30
    num_zombies: int = 5
    num_restarts: int = 2
    num_reaper_kills: int = 3
    num_terms: int = 4
    num_cuts: int = 4
    num_flushes: int = 3
    num_lost_groups: int = 1
    num_workers: int = 3
    partitions: int = 1
    max_open: int = 160
    num_rows: int = 16
    step_ms: int = 15
    lease_s: float = 2.0
    loss: float = 0.004
    pause_s: tuple[float, float] = (0.5, 2.0)
    patience_s: float = 120.0


FULL = Scale()
SHORT = Scale(
    num_requests=150,
    num_kills=3,
    num_zombies=1,
    num_restarts=1,
    num_reaper_kills=0,
    num_terms=1,
    num_cuts=1,
    num_flushes=1,
    lease_s=1.0,
    max_open=80,
    step_ms=8,
    pause_s=(0.2, 0.6),
    patience_s=60.0,
)
PARTED = Scale(  # after FULL, by `make chaos`: the same faults where each worker has a lease in three partitions
    num_requests=800,
    num_kills=10,
    num_zombies=3,
    num_restarts=1,
    num_reaper_kills=2,
    num_terms=2,
    num_cuts=2,
    num_flushes=1,
    partitions=3,
)
SHORT_PARTED = replace(
    SHORT,
    num_requests=40,
    num_kills=1,
    num_zombies=0,
    num_terms=0,
    num_cuts=0,
    num_flushes=0,
    num_workers=2,
    partitions=3,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    history: History
    counts: Counter[str]


def run_campaign(seed: int, scale: Scale, say: Callable[[str], None]) -> Outcome:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenmill-chaos-")))
        server = RestartableServer(folder / "data")
        stack.callback(server.close)
        ledger = Ledger()
        proxy = stack.enter_context(Proxy(server.port, ledger, seed=seed, loss=scale.loss))
        fleet = stack.enter_context(_fleet(folder, proxy, scale))
        campaign = Campaign(seed, scale, server, ledger, proxy, fleet, say)
        stack.callback(campaign.close)
        campaign.run()
        return Outcome(campaign.history, campaign.counts())


def _fleet(folder: Path, proxy: Proxy, scale: Scale) -> Fleet:
    arguments = (
        "--model",
        f"echo?step_ms={scale.step_ms}",
        "--redis",
        proxy.url,
        "--max-num-seqs",
        str(scale.num_rows),
        "--partitions",
        str(scale.partitions),
    )
    return Fleet(
        folder,
        scale.num_workers,
        *arguments,
        TOKENMILL_LEASE_TTL_S=str(scale.lease_s),
        TOKENMILL_DRAIN_TIMEOUT_S="0.3",
        TOKENMILL_SERVED_MODEL_NAME="echo",
    )


class Campaign:
    """One run. Faults are injected by the calling thread, one after the other."""

    def __init__(
        self,
        seed: int,
        scale: Scale,
        server: RestartableServer,
        ledger: Ledger,
        proxy: Proxy,
        fleet: Fleet,
        say: Callable[[str], None],
    ) -> None:
        self.history = History()
        self._scale = scale
        self._server, self._ledger, self._proxy, self._fleet, self._say = server, ledger, proxy, fleet, say
        self._random = random.Random(seed)
        self._workload = Workload(seed)
        self._places = Places(partitions=scale.partitions)
        self._started_s = time.monotonic()
        self._producer = Producer(self.history, self._places, server.url, proxy.url)
        self._watcher = Watcher(self._places, proxy.url, "watcher")
        self._listeners = [Listener(self._places, proxy.url, f"listener-{n}", seed + n) for n in range(4)]
        self._to_cancel: list[tuple[float, str]] = []
        self._is_hunting = threading.Event()
        self._marked: set[str] = set()
        ledger.on_call = self._hear

    # The order of things

    def run(self) -> None:
        for person in (self._watcher, *self._listeners):
            person.start()
        num_leases = self._scale.num_workers * self._scale.partitions
        self._until(lambda: len(self._ledger.workers) >= num_leases, self._scale.patience_s)
        faults = self._draw_faults()
        for number, fault in enumerate(faults, 1):
            self._ask(self._scale.num_requests * number // len(faults) - len(self.history.accepted))
            self._wait(self._random.uniform(*self._scale.pause_s))
            getattr(self, f"_{fault}")()
            self._say(
                f"{self._now_s:6.1f} s  {fault:12} {len(self.history.accepted)} asked, {self._watcher.num_open} open"
            )
        self._come_to_rest()
        self._record()

    def _report(self, what: str) -> None:
        num_asked, num_open = len(self.history.accepted), self._watcher.num_open
        self._say(f"{self._now_s:6.1f} s  {what:12} {num_asked} asked, {num_open} open")

    def close(self) -> None:
        for person in (self._watcher, *self._listeners):
            person.finish()
        self._producer.close()

    def _draw_faults(self) -> list[str]:
        scale = self._scale
        faults = (
            ["kill"] * scale.num_kills
            + ["zombie"] * scale.num_zombies
            + ["restart"] * scale.num_restarts
            + ["reaper_kill"] * scale.num_reaper_kills
            + ["term"] * scale.num_terms
            + ["cut"] * scale.num_cuts
            + ["flush"] * scale.num_flushes
            + ["lost_group"] * scale.num_lost_groups
        )
        self._random.shuffle(faults)
        return faults

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._started_s

    # Asking

    def _ask(self, number: int) -> None:
        for wish in self._workload.take(number):
            self._until(lambda: self._watcher.num_open < self._scale.max_open, self._scale.patience_s)
            self._take_on(wish, self._producer.send(wish))

    def _take_on(self, wish: Wish, request_id: str) -> None:
        self._watcher.watch(request_id)
        if wish.cancel_after_s is not None:
            self._to_cancel.append((self._now_s + wish.cancel_after_s, request_id))
        elif wish.way == "client" and self._random.random() < 0.1:
            self._random.choice(self._listeners).listen(request_id)

    def _tend(self) -> None:
        """What goes on all the time: ended workers are replaced, cancellations come."""
        self._fleet.mend()
        due = [request_id for at_s, request_id in self._to_cancel if at_s <= self._now_s]
        self._to_cancel = [(at_s, request_id) for at_s, request_id in self._to_cancel if at_s > self._now_s]
        for request_id in due:
            self._producer.cancel(request_id)

    def _wait(self, seconds: float) -> None:
        self._until(lambda: False, seconds)

    def _until(self, is_so: Callable[[], object], seconds: float) -> bool:
        """False: not within that time."""
        give_up_s = self._now_s + seconds
        while not is_so():
            if self._now_s > give_up_s:
                return False
            self._tend()
            threading.Event().wait(0.02)
        return True

    # Faults

    def _note(self, kind: str, subject: object = "") -> None:
        self.history.events.append(Event(kind, round(self._now_s, 3), str(subject)))

    def _victim(self) -> WorkerProcess:
        """One that holds something, if any does."""
        self._until(lambda: self._fleet.active() and self._watcher.num_open, 10.0)
        holders = {tenure.worker.rsplit("-", 2)[1] for tenure in list(self._ledger.tenures.values())}
        busy = [worker for worker in self._fleet.active() if str(worker.pid) in holders]
        return self._random.choice(busy or self._fleet.active())

    def _kill(self) -> None:
        victim = self._victim()
        victim.kill()
        self._note("kill", victim.pid)

    def _zombie(self) -> None:
        """Frozen until others took over what it holds, then awake again."""
        victim = self._victim()
        victim.freeze()
        is_taken = self._until(lambda: self._is_marked(victim.pid), 8 * self._scale.lease_s + 10)
        victim.thaw()
        self._note("zombie" if is_taken else "frozen in vain", victim.pid)

    def _restart(self) -> None:
        is_killed = self._random.random() < 0.5
        self._server.restart(is_killed=is_killed)
        self._note("restart", "SIGKILL" if is_killed else "SIGTERM")

    def _reaper_kill(self) -> None:
        """A worker dies, and so does the one that takes over from it, between two of its calls."""
        self._is_hunting.set()
        self._kill()
        self._until(lambda: not self._is_hunting.is_set(), 8 * self._scale.lease_s + 10)
        self._is_hunting.clear()

    def _hear(self, name: str, args: Sequence[bytes], reply: Any) -> None:
        """On the proxy's thread, before the worker hears the same."""
        if name != "mark_dead" or reply != 1:
            return
        self._marked.add(args[1].decode())
        if self._is_hunting.is_set():
            self._is_hunting.clear()
            reaper = self._fleet.by_pid(int(args[0].decode().rsplit("-", 2)[1]))
            if reaper is not None:
                reaper.kill()
                self._note("reaper killed", reaper.pid)

    def _is_marked(self, pid: int) -> bool:
        return any(name.rsplit("-", 2)[1] == str(pid) for name in list(self._marked))

    def _term(self) -> None:
        victim = self._victim()
        victim.terminate()
        self._until(lambda: not victim.is_running(), 30.0)
        self._note("term", victim.pid)

    def _cut(self) -> None:
        self._note("cut", kill_connections(self._server.url))

    def _flush(self) -> None:
        with connect(self._server.url) as client:
            client.script_flush()
        self._note("flush")

    def _lost_group(self) -> None:
        destroy_groups(self._server.url, self._random.choice(self._places.all))
        self._note("lost group")

    # The end

    def _come_to_rest(self) -> None:
        """Everything asked for is answered, everyone dead is taken over; then the workers go."""
        self._report("rest")
        self._proxy.loss = 0.0
        self._until(lambda: not self._watcher.num_open and not self._to_cancel, self._scale.patience_s)
        with connect(self._server.url) as client:
            self._until(lambda: self._only_the_living(client), self._scale.patience_s)
        for worker in self._fleet.running():
            worker.terminate()
        with contextlib.suppress(TimeoutError):
            for worker in self._fleet.running():
                worker.wait(30.0)
        self._watcher.finish()
        for listener in self._listeners:
            listener.finish()

    def _only_the_living(self, client: redis.Redis) -> bool:
        """In each partition."""
        living = sorted(worker.pid for worker in self._fleet.running())
        known: Any = [client.zrange(keys.workers, 0, -1) for keys in self._places.all]
        pids = [sorted(map(_pid, names)) for names in known]
        return all(some == living for some in pids) and not any(
            client.zcard(keys.dead_workers) for keys in self._places.all
        )

    def _num_losses(self) -> int:
        """A process that ends loses what runs once, however many leases it had; a lease lost alone loses no more."""
        leases = Counter(map(_pid, (name.encode() for name in self._ledger.workers)))
        return sum(1 + max(0, count - self._scale.partitions) for count in leases.values())

    def _record(self) -> None:
        with connect(self._server.url) as client:
            record(self.history, client, self._places, self._ledger)
        expect(self.history, list(self.history.accepted.values()))
        self.history.readings = self._watcher.readings()
        self.history.answers = [answer for listener in self._listeners for answer in listener.answers]
        self.history.effort = Effort(
            num_computed=self._fleet.num_drawn,
            num_losses=self._num_losses(),
            num_rows=self._scale.num_rows,
            window=round(2 * FLUSH_S * 1000 / self._scale.step_ms) + 1 + NUM_HELD,
            num_aside=sum(self._lost_between_checkpoints()),
        )
        failures = [person.failure for person in (self._watcher, *self._listeners) if person.failure is not None]
        if failures:
            raise failures[0]

    def _lost_between_checkpoints(self) -> Iterator[int]:
        """Of requests with stream "final", whose tokens are written down now and then only."""
        for tenure in self._ledger.tenures.values():
            accepted = self.history.accepted.get(tenure.request_id)
            if tenure.fence > 1 and accepted and '"stream":"final"' in accepted.body.replace(" ", ""):
                whole = sum(len(choice.token_ids) for choice in self.history.expected[tenure.request_id].choices)
                yield max(0, whole - tenure.published)

    def counts(self) -> Counter[str]:
        counts = Counter(event.kind for event in self.history.events)
        counts["requests"] = len(self.history.accepted)
        counts["workers started"] = len(self._fleet.everyone)
        counts["leases"] = len(self._ledger.workers)
        counts["calls"] = sum(self._ledger.num_calls.values())
        counts["lost requests"] = self._proxy.num_lost_requests
        counts["lost replies"] = self._proxy.num_lost_replies
        counts["late writes refused"] = sum(writes.num_refused for writes in self.history.writes)
        counts["cancel requests"] = len(self.history.cancelled)
        counts["takeovers"] = sum(tenure.fence > 1 for tenure in self.history.tenures)
        return counts


def _pid(worker: bytes) -> int:
    """Out of a worker's name."""
    return int(worker.decode().rsplit("-", 2)[1])
