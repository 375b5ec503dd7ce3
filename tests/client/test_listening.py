"""One connection reads for everybody: newcomers, two on one stream, a slow one, an outage."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tokenmill import AsyncClient, UnavailableError
from tokenmill.listening import MAX_AHEAD, Listener, Place
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import AsyncStore, Transitions, connect_async

from tests.support.servers import kill_connections

Use = Callable[[Listener, AsyncStore], Awaitable[None]]


@pytest.fixture
def listening(redis_url: str, keys: Keys) -> Callable[[Use], None]:
    """Runs a coroutine function with a listener and with somebody who writes."""

    async def main(use: Use) -> None:
        reads = AsyncStore(connect_async(redis_url, block_s=5.0, retries=0, max_connections=1))
        others = AsyncStore(connect_async(redis_url))
        listener = Listener(reads, others, Transitions(keys))
        await asyncio.wait_for(use(listener, others), timeout=30)
        await listener.close()
        await reads.close()
        await others.close()

    return lambda use: asyncio.run(main(use))


async def write(store: AsyncStore, key: str, entry_id: str) -> None:
    await store.send([("XADD", key, entry_id, "a", "b"), ("PEXPIRE", key, 60_000)])


async def ids(listener: Listener, place: Place, block_s: float = 20.0) -> list[str]:
    return [entry_id.decode() for entry_id, _ in await listener.wait(place, block_s)]


def test_who_comes_while_others_wait_is_read_for_at_once(listening: Callable[[Use], None], keys: Keys) -> None:
    async def use(listener: Listener, store: AsyncStore) -> None:
        with listener.following(keys.result("a"), "0-0") as first, listener.following(keys.result("b"), "0-0") as late:
            waiting = asyncio.create_task(ids(listener, first))
            assert await ids(listener, late, 0.05) == []  # the first one's read is under way by now
            await write(store, late.key, "1-0")
            assert await ids(listener, late, 4.0) == ["1-0"]
            await write(store, first.key, "7-0")
            assert await waiting == ["7-0"]

    listening(use)


def test_two_follow_one_stream_from_different_places(listening: Callable[[Use], None], keys: Keys) -> None:
    async def use(listener: Listener, store: AsyncStore) -> None:
        key = keys.result("a")
        await write(store, key, "1-0")
        await write(store, key, "2-0")
        with listener.following(key, "2-0") as ahead, listener.following(key, "0-0") as behind:
            waiting = asyncio.create_task(ids(listener, ahead))
            assert await ids(listener, behind, 4.0) == ["1-0", "2-0"]
            await write(store, key, "3-1")
            assert [await waiting, await ids(listener, behind)] == [["3-1"], ["3-1"]]

    listening(use)


def test_what_a_slow_follower_leaves_lying_does_not_grow_without_bound(keys: Keys) -> None:
    place = Place(keys.result("a"), "0-0", news=[None] * MAX_AHEAD)
    assert not place.is_open
    place.news.clear()
    assert place.is_open


def test_a_lost_connection_is_told_to_all_and_the_next_wait_connects_again(
    listening: Callable[[Use], None], keys: Keys, redis_url: str
) -> None:
    async def use(listener: Listener, store: AsyncStore) -> None:
        with listener.following(keys.result("a"), "0-0") as one, listener.following(keys.result("b"), "0-0") as other:
            waiting = [asyncio.create_task(ids(listener, place)) for place in (one, other)]
            with listener.following(keys.result("c"), "0-0") as third:
                assert await ids(listener, third, 0.05) == []  # all wait by now
            kill_connections(redis_url)
            for outcome in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(outcome, UnavailableError)
            await write(store, one.key, "1-0")
            assert await ids(listener, one) == ["1-0"]

    listening(use)


def test_a_client_that_is_closed_leaves_no_reader_behind(redis_url: str, queue: str) -> None:
    async def main() -> None:
        async with AsyncClient(redis_url, queue=queue) as client:
            job = await client.submit("hello")
            following = asyncio.create_task(job.result())
            assert await job.status() == "queued"
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
