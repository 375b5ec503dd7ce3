"""A master dies, or freezes and comes back: its replica takes over, and every accepted request still ends once.

What no replica has seen is lost with its master, so each test waits for replication before it does harm.
"""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from redis.exceptions import MovedError, ReadOnlyError
from tokenmill import Client, UnavailableError
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import connect

from tests.queue.harness import Bench, running_worker
from tests.support.topologies import SERVICE, Node, running_cluster, running_watched
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

NUM_REQUESTS = 40
MAX_TOKENS = 60
KEY = Keys().tag


@dataclass
class Pair:
    """The master of the default queue and its replica, and the URL that finds whichever is the master."""

    url: str
    master: Node
    replica: Node


@contextlib.contextmanager
def in_a_cluster() -> Iterator[Pair]:
    with running_cluster() as cluster:
        yield Pair(cluster.url, cluster.master_of(KEY), cluster.replica_of(KEY))


@contextlib.contextmanager
def under_a_sentinel() -> Iterator[Pair]:
    with running_watched() as watched:
        yield Pair(watched.url, watched.master, watched.replica)


@pytest.fixture(params=[in_a_cluster, under_a_sentinel], ids=["cluster", "sentinel"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with request.param() as pair:
        yield pair


def test_sentinels_and_servers_may_have_passwords_of_their_own() -> None:
    with running_watched() as watched, connect(watched.url) as server:
        server.config_set("requirepass", "data")
        server.execute_command("AUTH", "data")
        watched.sentinel.client.execute_command("SENTINEL", "SET", SERVICE, "auth-pass", "data")
        watched.sentinel.client.execute_command("ACL", "SETUSER", "default", ">watch")
        secret = f"{watched.url.replace('://', '://:data@')}?sentinel_password=watch"
        with Client(secret) as client:
            assert client.submit("hello").status() == "queued"
        for wrong in (secret.replace("watch", "other"), secret.replace("data", "other"), watched.url):
            with Client(wrong) as client, pytest.raises(UnavailableError, match="refused the user or password"):
                client.submit("hello")


def wait_promoted(pair: Pair) -> None:
    wait_until(lambda: pair.replica.role == "master", description="the replica is promoted", timeout=30.0)


def test_requests_survive_the_death_of_their_master(pair: Pair) -> None:
    with connect(pair.url, key=KEY) as server, Client(pair.url) as client:
        bench = Bench(pair.url, server, Keys())
        with running_worker(bench, model="echo?step_ms=20"):
            names = [f"q-{number}" for number in range(NUM_REQUESTS)]
            jobs = client.submit_many([{"prompt": name, "id": name, "max_tokens": MAX_TOKENS} for name in names])
            bench.wait_tokens(5, "q-0")
            assert pair.master.client.execute_command("WAIT", 1, 5_000) == 1
            pair.master.kill()
            for job in jobs:
                assert job.result(timeout=90).usage.completion_tokens == MAX_TOKENS
            for job in jobs:
                assert bench.result(job.id).terminal is not None  # and `result` refuses a second one
            assert client.submit("and on", max_tokens=4).result(timeout=30).finish_reason == "length"
    assert pair.replica.role == "master"


def test_a_master_that_comes_back_takes_no_writes(pair: Pair) -> None:
    with Client(pair.url) as client, connect(pair.url, key=KEY) as server:
        client.submit("before", id="before")
        assert server.execute_command("WAIT", 1, 5_000) == 1
        pair.master.signal(signal.SIGSTOP)
        wait_promoted(pair)
        pair.master.signal(signal.SIGCONT)
        wait_until(lambda: pair.master.role == "slave", description="the old master follows", timeout=30.0)
        with pytest.raises((MovedError, ReadOnlyError)):
            pair.master.client.set(f"{KEY}stale", "1")
        client.submit("after", id="after")
        assert [client.job(name).status() for name in ("before", "after")] == ["queued", "queued"]
        assert pair.replica.client.exists(Keys().job("after"))
