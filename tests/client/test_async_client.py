"""The asyncio client against a real server: the same behaviour as the blocking one, many at a time."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import redis
from tokenmill import (
    AsyncClient,
    ConflictError,
    RequestFailedError,
    ResultTimeoutError,
    UnavailableError,
    UnknownRequestError,
)

from tests.support.hands import Hands, delta, done, failed


@pytest.fixture
def with_client(redis_url: str, queue: str) -> Callable[[Callable[[AsyncClient], Awaitable[None]]], None]:
    """Runs a coroutine function with an open client."""

    async def main(use: Callable[[AsyncClient], Awaitable[None]]) -> None:
        async with AsyncClient(redis_url, queue=queue) as client:
            await asyncio.wait_for(use(client), timeout=60)

    return lambda use: asyncio.run(main(use))


WithClient = Callable[[Callable[[AsyncClient], Awaitable[None]]], None]


def test_submit_stream_and_result(with_client: WithClient, hands: Hands) -> None:
    async def use(client: AsyncClient) -> None:
        job = await client.submit("hello", id="q-1", max_tokens=2)
        begun = hands.begin_next()
        hands.publish(begun, delta(0, "a", 1))
        deltas = job.stream(timeout=20)
        assert (await anext(deltas)).text == "a"
        assert await job.status() == "running"
        hands.finish(begun, done("ab", 2), delta(1, "b", 2))
        assert [news.text async for news in deltas] == ["b"]
        assert [news.text async for news in job.stream(after="1-0")] == ["b"]
        completion = await job.result(timeout=20)
        assert (completion.text, completion.token_ids) == ("ab", [1, 2])

    with_client(use)


def test_a_request_may_be_delayed_and_durable(with_client: WithClient) -> None:
    async def use(client: AsyncClient) -> None:
        job = await client.submit("later", delay_s=3600, durable=True)
        assert await job.status() == "scheduled"
        assert job.durability in ("aof", "memory")

    with_client(use)


def test_many_results_are_awaited_at_once(with_client: WithClient, hands: Hands) -> None:
    async def use(client: AsyncClient) -> None:
        jobs = await client.submit_many([{"prompt": "hello", "id": f"q-{i}"} for i in range(100)])
        results = asyncio.gather(*(job.result(timeout=30) for job in jobs))
        await asyncio.sleep(0.1)  # more wait than may block at once
        for begun in hands.begin(*(delivery.claim() for delivery in hands.fetch())):
            hands.finish(begun, done(begun.request_id))
        assert [completion.text for completion in await results] == [f"q-{i}" for i in range(100)]

    with_client(use)


def test_errors_are_those_of_the_blocking_client(with_client: WithClient, hands: Hands) -> None:
    async def use(client: AsyncClient) -> None:
        job = await client.submit("hello", id="q-1")
        with pytest.raises(ConflictError):
            await client.submit("other", id="q-1")
        with pytest.raises(ResultTimeoutError):
            await job.result(timeout=0.05)
        hands.finish(hands.begin_next(), failed("boom", "it broke"), state="failed")
        with pytest.raises(RequestFailedError, match="it broke"):
            await job.result(timeout=20)
        with pytest.raises(UnknownRequestError):
            await client.job("nobody").result()
        assert await client.job("nobody").cancel() == "unknown"

    with_client(use)


def test_a_cancelled_await_leaves_the_client_usable(with_client: WithClient, hands: Hands) -> None:
    async def use(client: AsyncClient) -> None:
        job = await client.submit("hello")
        waiting = asyncio.create_task(job.result())
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        hands.finish(hands.begin_next(), done("later"))
        assert (await job.result(timeout=20)).text == "later"

    with_client(use)


def test_a_stream_goes_on_through_a_killed_connection(
    with_client: WithClient, hands: Hands, server: redis.Redis
) -> None:
    async def use(client: AsyncClient) -> None:
        job = await client.submit("hello")
        begun = hands.begin_next()
        hands.publish(begun, delta(0, "a", 1))
        deltas = job.stream(timeout=20)
        assert (await anext(deltas)).text == "a"
        server.client_kill_filter(_type="normal", skipme=True)
        hands.finish(begun, done("ab", 2), delta(1, "b", 2))
        assert [news.text async for news in deltas] == ["b"]

    with_client(use)


def test_no_server_is_said_soon() -> None:
    async def main() -> None:
        async with AsyncClient("redis://127.0.0.1:1/0") as client:
            with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
                await client.submit("hello")
            with pytest.raises(UnavailableError):
                await client.job("q-1").result()

    asyncio.run(asyncio.wait_for(main(), timeout=20))
