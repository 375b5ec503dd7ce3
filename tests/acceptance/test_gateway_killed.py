"""Gateways and workers killed mid-stream: every client that comes back ends with exactly the uninterrupted text."""

import asyncio
from pathlib import Path

import pytest

from tests.acceptance.fleet import Fleet, running_fleet
from tests.queue.harness import Bench
from tests.support.doors import CHAT, RESPONSES, Doors, Visitor, open_doors, visitor
from tests.support.waiting import wait_until


def test_who_comes_back_through_another_door_has_the_uninterrupted_text(bench: Bench, tmp_path: Path) -> None:
    check(bench, tmp_path, num_visitors=8, max_tokens=60, num_kills=1)


@pytest.mark.slow
def test_two_hundred_clients_and_several_kills(bench: Bench, tmp_path: Path) -> None:
    check(bench, tmp_path, num_visitors=200, max_tokens=300, num_kills=4)


def check(bench: Bench, folder: Path, *, num_visitors: int, max_tokens: int, num_kills: int) -> None:
    queue = bench.keys.queue
    with (
        running_fleet(bench, folder, max_num_seqs=num_visitors) as fleet,
        open_doors(bench.url, queue, folder, num=2) as doors,
    ):
        fleet.start_ready(2)
        visitors = [
            visitor(doors, CHAT if number % 2 else RESPONSES, number, max_tokens=max_tokens)
            for number in range(num_visitors)
        ]
        asyncio.run(visit_while_killing(bench, visitors, doors, fleet, num_kills))
        num_returns = sum(len(one.visits) - 1 for one in visitors)
        assert num_returns >= num_visitors // 2, "the kills came too late to cut anybody off"
        assert {one.name: one.text for one in visitors} == undisturbed_texts(visitors, doors)
        for one in visitors:
            assert_nothing_twice(one)
    print(f"\n{num_visitors} clients, {num_kills} gateways and workers killed, {num_returns} reconnects")


async def visit_while_killing(
    bench: Bench, visitors: list[Visitor], doors: Doors, fleet: Fleet, num_kills: int
) -> None:
    visits = asyncio.gather(*(one.run() for one in visitors))
    num_tokens = sum(one.fields.get("max_tokens") or one.fields["max_output_tokens"] for one in visitors)
    for number in range(num_kills):
        share = num_tokens * (number + 1) // (num_kills + 2)
        await asyncio.to_thread(_wait_published, bench, visitors, share)
        await asyncio.to_thread(_kill_one_of_each, doors, fleet)
    await asyncio.wait_for(visits, timeout=200)


def _kill_one_of_each(doors: Doors, fleet: Fleet) -> None:
    """The door that everybody uses, and the worker that has served for the longest; others take their places."""
    first = doors.open[0]
    worker = next(worker for worker in fleet.started if worker.is_alive())
    doors.kill(first)
    worker.kill()
    fleet.start()
    doors.add()


def _wait_published(bench: Bench, visitors: list[Visitor], num_tokens: int) -> None:
    def published() -> int:
        with bench.server.pipeline(transaction=False) as pipe:
            for one in visitors:
                pipe.hget(bench.keys.job(one.name), "published")
            return sum(int(count or 0) for count in pipe.execute())

    wait_until(lambda: published() >= num_tokens, description=f"{num_tokens} tokens published", timeout=100.0)


def undisturbed_texts(visitors: list[Visitor], doors: Doors) -> dict[str, str]:
    """What the same requests get with nothing in between."""
    calm = [Visitor(doors, one.path, f"calm-{one.name}", one.fields) for one in visitors]

    async def main() -> None:
        await asyncio.wait_for(asyncio.gather(*(one.run() for one in calm)), timeout=200)

    asyncio.run(main())
    assert all(len(one.visits) == 1 for one in calm)
    return {one.name.removeprefix("calm-"): one.text for one in calm}


def assert_nothing_twice(one: Visitor) -> None:
    if one.path == RESPONSES:
        numbers = [event["sequence_number"] for event in one.events]
        assert numbers == list(range(len(numbers))), one.name
    else:
        ids = [name for visit in one.visits for name, _ in visit.events if name]
        offsets = [int(name.partition("-")[0]) for name in ids]
        assert offsets == sorted(offsets), one.name
