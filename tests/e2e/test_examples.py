"""The example producers, run as a reader would run them, each against a real server and a worker of the echo model."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenmill import Client

from tests.support.node import installed
from tests.support.waiting import wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"
NODE_PRODUCER = EXAMPLES / "node-producer"
QUEUE = "examples"  # of their own, on the server that all tests share
TIMEOUT_S = 60


def run(command: list[str], url: str, *, cwd: Path = EXAMPLES) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "TOKENMILL_REDIS_URL": url, "TOKENMILL_QUEUE": QUEUE}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def worker(redis_url: str) -> Iterator[None]:
    options = ["--model", "echo", "--redis", redis_url, "--queue", QUEUE]
    command = [sys.executable, "-m", "tokenmill.cli", "worker", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        with Client(redis_url, queue=QUEUE) as client:
            wait_until(lambda: bool(client.statistics().workers), description="the worker registers", timeout=TIMEOUT_S)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)


@pytest.mark.usefixtures("worker")
def test_the_bare_redis_producer_prints_its_answer(redis_url: str) -> None:
    done = run([sys.executable, "raw_redis.py", "Why is the sky blue?", "--max-tokens", "16"], redis_url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "length, 16 tokens" in done.stderr


@pytest.mark.usefixtures("worker")
def test_the_bare_redis_producer_shows_why_a_request_failed(redis_url: str) -> None:
    done = run([sys.executable, "raw_redis.py", "Hello", "--max-tokens", "0"], redis_url)
    assert done.returncode == 1
    assert "max_tokens" in done.stderr


def test_the_bare_redis_producer_knows_nothing_of_our_package() -> None:
    source = (EXAMPLES / "raw_redis.py").read_text()
    assert "import tokenmill" not in source
    assert "from tokenmill" not in source


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the Node example with its one dependency installed."""
    return installed(NODE_PRODUCER, tmp_path_factory.mktemp("node"))


@pytest.mark.usefixtures("worker")
def test_the_node_producer_prints_the_answer_that_is_stored(redis_url: str, node: Path) -> None:
    done = run(["node", "producer.mjs", "Why is the sky blue?", "16"], redis_url, cwd=node)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "length, 16 tokens" in done.stderr
    with Client(redis_url, queue=QUEUE) as client:
        stored = client.job(done.stderr.split("r:")[1].strip()).result(timeout=TIMEOUT_S)
    assert stored.text in done.stdout


@pytest.mark.usefixtures("worker")
def test_the_node_producer_shows_why_a_request_failed(redis_url: str, node: Path) -> None:
    done = run(["node", "producer.mjs", "Hello", "0"], redis_url, cwd=node)
    assert done.returncode == 1
    assert "max_tokens" in done.stderr


def test_the_node_producer_says_how_it_is_used(node: Path) -> None:
    done = run(["node", "producer.mjs"], "redis://localhost:1", cwd=node)
    assert done.returncode == 2
    assert "usage" in done.stderr
