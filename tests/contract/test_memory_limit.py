"""At maxmemory with noeviction: new requests are put off, running ones still finish."""

from collections.abc import Iterator

import pytest
import redis
from tokenmill import Client, QueueBusyError
from tokenmill.wire.keys import Keys, Lane
from tokenmill.wire.store import Store, connect

from tests.support.hands import Hands, delta, done
from tests.support.servers import running_server


@pytest.fixture(scope="module")
def small_server() -> Iterator[str]:
    with running_server() as server:
        yield server.socket_url


@pytest.fixture
def full(small_server: str) -> Iterator[redis.Redis]:
    """A server that can be filled by the test, and is emptied after it."""
    client = connect(small_server)
    yield client
    client.config_set("maxmemory", 0)
    client.flushall()
    client.close()


def fill(server: redis.Redis) -> None:
    server.config_set("maxmemory", server.info("memory")["used_memory"])
    with pytest.raises(redis.ResponseError, match="maxmemory"):
        server.set("one more", "x" * 100_000)


def test_submit_answers_busy_and_keeps_nothing(full: redis.Redis, small_server: str) -> None:
    with Client(small_server) as client:
        fill(full)
        with pytest.raises(QueueBusyError) as caught:
            client.submit("hello", id="q-1")
        assert caught.value.retry_after_s > 0
    assert full.exists(Keys().job("q-1")) == full.xlen(Keys().lane(Lane.NORMAL)) == 0


def test_a_running_request_still_finishes(full: redis.Redis, small_server: str) -> None:
    hands = Hands(Store(full), Keys())
    with Client(small_server) as client:
        job = client.submit("hello")
        begun = hands.begin_next()
        fill(full)
        assert hands.finish(begun, done("a", 1), delta(0, "a", 1)).status == "ok"
        assert job.result(timeout=20).text == "a"
    assert full.xlen(Keys().lane(Lane.NORMAL)) == 0


def test_a_waiting_request_can_still_be_cancelled(full: redis.Redis, small_server: str) -> None:
    hands = Hands(Store(full), Keys())
    with Client(small_server) as client:
        job = client.submit("hello", deadline_s=60)
        fill(full)
        assert job.cancel() == "cancelled"
        assert hands.begin_next().status == "skipped"
