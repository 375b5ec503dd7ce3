"""The health check of a worker's container, against a real server."""

import socket
import subprocess
import sys

import pytest
import redis
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import Store, Transitions
from tokenmill_worker.queue.lease import fresh_name
from tokenmill_worker.queue.liveness import leases_of, main


def test_a_worker_of_this_host_counts_while_its_lease_runs(
    server: redis.Redis, store: Store, transitions: Transitions, keys: Keys
) -> None:
    name = fresh_name()
    store.run(transitions.register(name, {}, 60_000))
    assert leases_of(socket.gethostname(), server, keys) == [name]


def test_a_worker_of_another_host_does_not_count(
    server: redis.Redis, store: Store, transitions: Transitions, keys: Keys
) -> None:
    store.run(transitions.register(f"{socket.gethostname()}-b-12-ab", {}, 60_000))
    assert leases_of(socket.gethostname(), server, keys) == []


def test_a_lease_that_ran_out_does_not_count(server: redis.Redis, keys: Keys) -> None:
    server.zadd(keys.workers, {fresh_name(): 1})
    assert leases_of(socket.gethostname(), server, keys) == []


def test_the_check_fails_with_a_reason_when_there_is_no_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKENMILL_REDIS_URL", "redis://127.0.0.1:1/0")
    assert main() == 1
    assert capsys.readouterr().out.startswith("cannot tell: ")


def test_the_check_is_cheap_because_it_loads_no_engine() -> None:
    code = "import sys, tokenmill_worker.queue.liveness; print('torch' in sys.modules, 'numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.split() == ["False", "False"]
