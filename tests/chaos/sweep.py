"""The lost-reply sweep: a request's whole life, once for every server call in it, with that call failing.

An actor is one connection: the client that asks, the watcher that reads, and of a worker the reader, the publisher and
the lease. Each of its calls fails once before it is sent and once after it was carried out.
"""

import contextlib
import itertools
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple
from unittest.mock import patch

from tokenmill import Client, client
from tokenmill.wire.errors import UnavailableError
from tokenmill.wire.keys import Keys
from tokenmill.wire.messages import FINAL_STATES, Request
from tokenmill.wire.store import Store, Transitions, connect
from tokenmill_worker import cli
from tokenmill_worker.engine import EngineConfig
from tokenmill_worker.engine.engine import Engine
from tokenmill_worker.settings import WorkerSettings
from tokenmill_worker.worker import Worker

from tests.chaos.people import persistently
from tests.support.checker import Violation, check
from tests.support.faults import FailOnce, Moment, Plan, failing_connect
from tests.support.history import Accepted, Answer, Effort, History
from tests.support.ledger import Ledger
from tests.support.places import Places
from tests.support.recorder import expect, record
from tests.support.tally import Tally, load_counting
from tests.support.waiting import wait_until

STEP_MS = 10
LEASE_S = 0.6
REQUEST = {"prompt": "träume", "max_tokens": 20, "temperature": 1.0, "seed": 7, "n": 2, "stop": ["zz"]}
CLIENTS = ("client", "watcher")  # in the order in which a Client connects
WORKERS = ("reader", "publisher", "lease")  # in the order in which a worker does
MAX_CALLS = 60  # of one actor in one life; far more than there are
_patching = threading.Lock()
_numbers = itertools.count(1)


class Case(NamedTuple):
    """One run: which life, and which call of which actor fails. A call beyond the last one fails nowhere."""

    life: str
    actor: str
    at: int
    moment: Moment


@dataclass
class Stage:
    """What one life is played on. `fault` is consumed by the first to connect as its actor."""

    url: str
    case: Case
    fault: FailOnce
    queue: str = field(default_factory=lambda: f"sweep-{next(_numbers)}")
    ledger: Ledger = field(default_factory=Ledger)
    tally: Tally = field(default_factory=Tally)

    def plans(self, actors: Iterable[str], *, is_faulty: bool) -> list[Plan | None]:
        return [self.fault if is_faulty and actor == self.case.actor else None for actor in actors]

    def client(self) -> Client:
        connecting = failing_connect(connect, self.plans(CLIENTS, is_faulty=True), self.ledger)
        with _patching, patch.object(client, "connect", connecting):
            return Client(self.url, queue=self.queue)

    @contextlib.contextmanager
    def worker(self, *, is_faulty: bool = False) -> Iterator[Worker]:
        """On a thread, until the block ends; it drains then. One that cannot even register is started again."""
        serving = self._assemble(is_faulty=is_faulty)
        failures: list[BaseException] = []
        thread = threading.Thread(target=_run, args=(serving, failures), name="sweep-worker")
        thread.start()
        try:
            yield serving
        finally:
            serving.stop()
            thread.join(30.0)
        if failures and isinstance(failures[0], UnavailableError):
            return  # without a server at its start a worker says so and ends: its supervisor starts another one
        if failures:
            raise failures[0]

    def _assemble(self, *, is_faulty: bool) -> Worker:
        values = {"model": "echo", "queue": self.queue, "lease_ttl_s": LEASE_S, "drain_timeout_s": 0.0}
        settings = WorkerSettings.read(None, values)
        config = EngineConfig(model=f"echo?step_ms={STEP_MS}", max_num_seqs=4)
        loaded = load_counting(config, self.tally)
        engine = Engine(config, runner=loaded.runner, tokenizer=loaded.tokenizer)
        connecting = failing_connect(connect, self.plans(WORKERS, is_faulty=is_faulty), self.ledger)
        with _patching, patch.object(cli, "connect", connecting):
            return cli.assemble(engine, settings, self.url)


def _run(serving: Worker, failures: list[BaseException]) -> None:
    try:
        serving.run()
    except BaseException as failure:
        failures.append(failure)


# The lives


def undisturbed(stage: Stage, asking: Client) -> None:
    """Submitted, begun, published, finished."""
    with stage.worker(is_faulty=True):
        persistently(lambda: asking.submit(id="q-1", **REQUEST))  # type: ignore[arg-type]  # the same for all lives
        with contextlib.suppress(TimeoutError):
            persistently(lambda: asking.job("q-1").result(timeout=2.0))


def cancelled(stage: Stage, asking: Client) -> None:
    """Cancelled while it runs."""
    persistently(lambda: asking.submit(id="q-1", **REQUEST))  # type: ignore[arg-type]  # the same for all lives
    with stage.worker(is_faulty=True):
        _wait_tokens(stage, 4)
        persistently(asking.job("q-1").cancel)
        with contextlib.suppress(TimeoutError):
            persistently(lambda: asking.job("q-1").result(timeout=2.0))


def handed_back(stage: Stage, asking: Client) -> None:
    """Its worker drains; another one goes on."""
    persistently(lambda: asking.submit(id="q-1", **REQUEST))  # type: ignore[arg-type]  # the same for all lives
    with stage.worker(is_faulty=True):
        _wait_tokens(stage, 4)
    with stage.worker():
        persistently(lambda: asking.job("q-1").result(timeout=20.0))


def taken_over(stage: Stage, asking: Client) -> None:
    """Its worker loses the lease and is reaped by one whose calls fail, and comes back as somebody new."""
    persistently(lambda: asking.submit(id="q-1", **REQUEST))  # type: ignore[arg-type]  # the same for all lives
    with stage.worker() as first:
        _wait_tokens(stage, 4)
        with stage.worker(is_faulty=True), connect(stage.url) as server:
            keys = Keys(stage.queue)
            server.zrem(keys.workers, first.lease.worker)
            server.zadd(keys.dead_workers, {first.lease.worker: 1})
            persistently(lambda: asking.job("q-1").result(timeout=20.0))


LIVES: dict[str, Callable[[Stage, Client], None]] = {
    life.__name__: life for life in (undisturbed, cancelled, handed_back, taken_over)
}


def _wait_tokens(stage: Stage, num_tokens: int) -> None:
    """Until so many are told, or the worker could not even start."""
    key = Keys(stage.queue).job("q-1")
    with connect(stage.url) as server, contextlib.suppress(AssertionError):
        wait_until(
            lambda: int(server.hget(key, "published") or 0) >= num_tokens,
            description=f"{num_tokens} tokens",
            timeout=2.0,
        )


# One run, and all of them


def live(url: str, case: Case) -> tuple[list[Violation], int]:
    """What the checker says of one life, and how many calls the actor made in it."""
    stage = Stage(url, case, FailOnce(case.at, case.moment))
    history = History()
    if case.life == "cancelled":
        history.cancelled.add("q-1")
    request = Request.build(**REQUEST)
    history.accepted["q-1"] = Accepted("q-1", request.encode().decode())
    with stage.client() as asking:
        LIVES[case.life](stage, asking)
        _come_to_rest(stage)
        history.answers = [_answer(asking)]
    _record(stage, history)
    return check(history), stage.fault.num_calls


def _come_to_rest(stage: Stage) -> None:
    """Whoever could not say goodbye is reaped by a worker with nothing in its way."""
    keys = Keys(stage.queue)
    with closing(Store(connect(stage.url))) as store:
        if _is_settled(stage) and not _names(store, keys):
            return
        with stage.worker() as last:
            wait_until(
                lambda: _is_settled(stage) and _names(store, keys) == [last.lease.worker],
                description=f"{stage.case} comes to rest",
                timeout=30.0,
            )


def _names(store: Store, keys: Keys) -> list[str]:
    """Everyone registered or being reaped."""
    replies = store.send([("ZRANGE", key, 0, -1) for key in (keys.workers, keys.dead_workers)])
    return [name.decode() for reply in replies for name in reply]


def _is_settled(stage: Stage) -> bool:
    """The request is final, and its entry is off the lanes: one cancelled in the queue waits there to be skipped."""
    transitions = Transitions(Keys(stage.queue))
    with closing(Store(connect(stage.url))) as store:
        info = store.run(transitions.inspect("q-1"))
        statistics = store.run(transitions.statistics())
    return info is not None and info.state in FINAL_STATES and not statistics.depth + statistics.in_flight


def _answer(asking: Client) -> Answer:
    job = asking.job("q-1")
    entry_ids = tuple(persistently(lambda: [delta.entry_id for delta in job.stream(timeout=20.0)]))
    completion = persistently(lambda: job.result(timeout=20.0))
    return Answer("client", "q-1", entry_ids, completion.text, completion.finish_reason)


def _record(stage: Stage, history: History) -> None:
    with connect(stage.url) as server:
        record(history, server, Places(stage.queue), stage.ledger)
    expect(history, history.accepted.values())
    history.effort = Effort(
        num_computed=stage.tally.count,
        num_losses=len(stage.ledger.workers),
        num_rows=2,
        window=100 // STEP_MS + 6,
    )


def sweep(url: str, cases: Iterable[Case], *, num_threads: int = 4) -> list[tuple[Case, list[Violation]]]:
    """Every case, a few at a time, since they wait more than they work."""
    cases = list(cases)
    with ThreadPoolExecutor(num_threads) as pool:
        outcomes = pool.map(lambda case: live(url, case), cases)
        return [(case, violations) for case, (violations, _) in zip(cases, outcomes, strict=True)]


def sample_cases(seed: int, number: int) -> list[Case]:
    """Some of all cases, without running any first."""
    chance = random.Random(seed)
    lengths = {"client": 3, "watcher": 8, "reader": 22, "publisher": 9, "lease": 12}
    actors = chance.choices(list(lengths), weights=list(lengths.values()), k=number)
    moments: tuple[Moment, Moment] = ("before", "after")
    lives = itertools.cycle(LIVES)
    return [
        Case(life, actor, chance.randint(1, lengths[actor]), chance.choice(moments))
        for life, actor in zip(lives, actors, strict=False)
    ]


def count_calls(url: str, *, num_threads: int = 4) -> dict[tuple[str, str], int]:
    """Calls of each actor in each life when none fails."""
    actors = [(life, actor) for life in LIVES for actor in CLIENTS + WORKERS]
    with ThreadPoolExecutor(num_threads) as pool:
        outcomes = pool.map(lambda pair: live(url, Case(pair[0], pair[1], 0, "before")), actors)
        return {pair: min(num_calls, MAX_CALLS) for pair, (_, num_calls) in zip(actors, outcomes, strict=True)}


def all_cases(num_calls: dict[tuple[str, str], int]) -> Iterator[Case]:
    """Every call there was, and two more: a failure leads to calls that were not there before."""
    for (life, actor), number in num_calls.items():
        for at in range(1, number + 3):
            yield Case(life, actor, at, "before")
            yield Case(life, actor, at, "after")
