"""One look at the fleet: what it tells of queue, workers, rates, pictures, failures, dead letters and runs."""

import asyncio
from collections.abc import Iterator

import pytest
from tokenmill.fleet.rates import RateBook
from tokenmill.fleet.reader import AsyncFleetReader, FleetReader
from tokenmill.fleet.values import FleetSnapshot, Totals
from tokenmill.wire.keys import Lane

from tests.queue.harness import Bench, running_worker
from tests.support.waiting import wait_until


@pytest.fixture
def reader(bench: Bench) -> Iterator[FleetReader]:
    reader = FleetReader(bench.url, bench.keys.queue)
    yield reader
    reader.close()


def test_a_queue_that_nobody_uses_has_a_calm_snapshot(reader: FleetReader) -> None:
    look = reader.look()
    assert (look.depth, look.in_flight, look.workers, look.dead_letters, look.failures) == (0, 0, (), (), ())
    assert [lane.name for lane in look.lanes] == ["resume", "high", "normal", "bulk", "quarantine"]


def test_what_waits_is_told_by_lane(bench: Bench, reader: FleetReader) -> None:
    bench.submit("a", lane=Lane.HIGH)
    bench.submit("b", lane=Lane.BULK)
    bench.submit("c", lane=Lane.BULK)
    assert {lane.name: lane.backlog for lane in reader.look().lanes if lane.backlog} == {"high": 1, "bulk": 2}


def test_a_worker_is_told_with_its_model_lease_pages_and_rates(bench: Bench, reader: FleetReader) -> None:
    with running_worker(bench):
        bench.submit("q-1", max_tokens=40)
        bench.wait_result("q-1")
        wait_until(lambda: _tokens(reader.look()) >= 39, description="the worker told what it did")
        (worker,) = reader.look().workers
    assert (worker.model, worker.max_num_seqs) == ("echo", 8)
    assert worker.num_free_pages == worker.num_pages > 0
    assert 0 < worker.lease_left_s <= 1
    assert worker.first_token_p50_ms is not None


def _tokens(look: FleetSnapshot) -> int:
    return sum(worker.totals.num_decode_tokens for worker in look.workers)


def test_a_batch_is_drawn_for_who_asks_again_until_it_comes(bench: Bench, reader: FleetReader) -> None:
    with running_worker(bench):
        wait_until(lambda: reader.look().workers, description="the worker is there")
        (worker,) = reader.look().workers
        assert worker.picture_name is not None
        name = worker.picture_name
        wait_until(lambda: name in reader.pictures([name]), description="the worker draws")
        bench.submit("q-1", max_tokens=3)
        wait_until(lambda: reader.pictures([name])[name].bars, description="the request is in the picture")


def test_a_workers_own_figures_decide_its_rates() -> None:
    book = RateBook()
    book.note("w", Totals(told_s=10.0, num_decode_tokens=100, num_prefill_tokens=10, num_cached_tokens=0))
    book.note("w", Totals(told_s=10.0, num_decode_tokens=100, num_prefill_tokens=10, num_cached_tokens=0))
    rates = book.note("w", Totals(told_s=12.0, num_decode_tokens=300, num_prefill_tokens=20, num_cached_tokens=30))
    assert (rates.decode_tokens_per_s, rates.prefill_tokens_per_s, rates.cached_share) == (100.0, 5.0, 0.75)


def test_rates_are_of_the_last_seconds_alone() -> None:
    book = RateBook()
    for second in range(60):
        rates = book.note("w", Totals(told_s=float(second), num_decode_tokens=min(second, 30) * 100))
    assert rates.decode_tokens_per_s == 0.0


def test_a_worker_that_begins_anew_starts_from_nothing() -> None:
    book = RateBook()
    book.note("w", Totals(told_s=1_000.0, num_decode_tokens=9_000))
    assert book.note("w", Totals(told_s=1.0, num_decode_tokens=5)).decode_tokens_per_s == 0.0


def test_failures_and_dead_letters_are_told_without_what_was_asked(bench: Bench, reader: FleetReader) -> None:
    bench.add_raw({"body": "{SECRET"})
    bench.submit("bad", prompt=[10**9])
    with running_worker(bench):
        bench.wait_result("bad")
        wait_until(lambda: reader.look().failures, description="the failure is told")
        look = reader.look()
    assert [failure.request_id for failure in look.failures] == ["bad"]
    assert (look.num_dead_letters, len(look.dead_letters)) == (1, 1)
    assert "SECRET" not in str(look.describe())


def test_the_awaited_reader_sees_the_same(bench: Bench, reader: FleetReader) -> None:
    bench.submit("a")

    async def look() -> FleetSnapshot:
        reader = AsyncFleetReader(bench.url, bench.keys.queue)
        try:
            await reader.pictures([])
            return await reader.look()
        finally:
            await reader.close()

    assert asyncio.run(look()).lanes[2].backlog == reader.look().lanes[2].backlog == 1
    assert bench.server.pttl(bench.keys.watch) > 0


def test_the_partitions_of_a_queue_are_one_fleet(bench: Bench) -> None:
    reader = FleetReader(bench.url, bench.keys.queue, 2)
    with running_worker(bench, partitions=2):
        wait_until(lambda: reader.look().workers, description="the worker is there")
        look = reader.look()
        assert (look.partitions, len(look.workers)) == (2, 1)
        name = look.workers[0].picture_name
        assert name is not None
        wait_until(lambda: reader.pictures([name]), description="the worker draws in partition 0")
    reader.close()
