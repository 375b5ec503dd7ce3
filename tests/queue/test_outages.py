"""The server goes away, forgets or hangs: nothing is lost, nothing is doubled, and the worker comes back by itself."""

import time
from collections.abc import Iterator

import pytest
from tokenmill.wire.keys import GROUP, Keys, Lane
from tokenmill.wire.store import connect

from tests.queue.harness import LEASE_TTL_S, Bench, running_worker, uninterrupted_text
from tests.support.servers import paused, running_server
from tests.support.waiting import wait_until

LONG = 150


def kill_connections(bench: Bench) -> None:
    """Of everyone else, in the middle of whatever they ask."""
    bench.server.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def assert_whole(bench: Bench, request_id: str = "q-1") -> None:
    result = bench.wait_result(request_id, timeout=30.0)
    assert result.text == uninterrupted_text("hello", temperature=0.0, max_tokens=LONG)
    assert result.terminal is not None
    assert result.terminal.text == result.text


def test_lost_connections_are_made_again_and_nothing_is_told_twice(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=10"):
        for number in range(6):
            bench.submit(f"q-{number}", max_tokens=LONG)
        for num_tokens in (5, 30, 60, 90):
            bench.wait_tokens(num_tokens, "q-0")
            kill_connections(bench)
        for number in range(6):
            assert_whole(bench, f"q-{number}")
    assert bench.is_at_rest()


def test_batches_that_begin_while_connections_are_cut_are_served_whole(bench: Bench) -> None:
    names = [f"q-{number}" for number in range(300)]
    for name in names:
        bench.submit(name, max_tokens=2)
    with running_worker(bench):
        wait_until(bench.workers, description="the worker is there")
        for name in names[::40]:
            kill_connections(bench)
            bench.wait_result(name)
        assert {bench.terminal(name).type for name in names} == {"done"}
    assert bench.is_at_rest()


def test_a_worker_whose_connections_were_cut_says_goodbye_and_hands_back(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=10"):
        bench.submit("q-1", max_tokens=LONG)
        bench.wait_tokens(5)
        kill_connections(bench)
    assert not bench.workers()
    assert bench.job("q-1")["state"] == "queued"


def test_an_idle_worker_serves_again_after_its_connections_were_cut(bench: Bench) -> None:
    with running_worker(bench) as running:
        wait_until(bench.workers, description="the worker is there")
        kill_connections(bench)
        bench.submit("q-1")
        assert bench.terminal("q-1").type == "done"
        assert running.worker.lease.worker in bench.workers()


def test_entries_whose_delivery_got_lost_are_found_by_the_audit(bench: Bench) -> None:
    with running_worker(bench) as running:
        wait_until(bench.workers, description="the worker is there")
        lost_lane = bench.keys.lane(Lane.BULK)
        bench.submit("first")
        bench.wait_result("first")
        # As if the reply to the worker's own read had been lost: pending under its name, unknown to its memory.
        with bench.server.pipeline(transaction=True) as pipe:
            pipe.xadd(lost_lane, {"prompt": "hi", "id": "lost"})
            pipe.xreadgroup(GROUP, running.worker.lease.worker, {lost_lane: ">"})
            pipe.execute()
        kill_connections(bench)
        assert bench.terminal("lost").type == "done"


def test_a_destroyed_group_is_made_again(bench: Bench) -> None:
    with running_worker(bench):
        bench.submit("q-1")
        bench.wait_result("q-1")
        for lane in Lane:
            bench.server.xgroup_destroy(bench.keys.lane(lane), GROUP)
        bench.submit("q-2")
        assert bench.terminal("q-2").type == "done"


def test_a_group_destroyed_under_a_running_request_does_not_run_it_twice(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=10") as running:
        bench.submit("q-1", max_tokens=LONG)
        bench.wait_tokens(5)
        for lane in Lane:
            bench.server.xgroup_destroy(bench.keys.lane(lane), GROUP)
        assert_whole(bench)
        assert running.engine.statistics().num_finished == 1
    assert bench.job("q-1")["fence"] == "1"


def test_forgotten_scripts_are_sent_again(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=10"):
        bench.submit("q-1", max_tokens=LONG)
        for num_tokens in (5, 50, 100):
            bench.wait_tokens(num_tokens)
            bench.server.script_flush()
        assert_whole(bench)


@pytest.fixture
def own() -> Iterator[Bench]:
    """On a server that this test may harm."""
    with running_server() as server, connect(server.tcp_url) as client:
        yield Bench(server.tcp_url, client, Keys())


def test_a_server_that_hangs_beyond_every_lease_costs_time_and_nothing_else(own: Bench) -> None:
    with running_worker(own, model="echo?step_ms=10"):
        own.submit("q-1", max_tokens=LONG)
        own.wait_tokens(5)
        with paused(own.url):
            since_s = time.monotonic()
            wait_until(lambda: time.monotonic() - since_s > 2 * LEASE_TTL_S, description="every lease runs out")
        assert_whole(own)
    assert own.is_at_rest()


def test_a_server_that_lost_everything_gets_a_new_lease_and_new_groups(own: Bench) -> None:
    with running_worker(own, model="echo?step_ms=10") as running:
        own.submit("lost", max_tokens=LONG)
        own.wait_tokens(5, "lost")
        own.server.flushall()
        wait_until(own.workers, description="the worker registers anew")
        own.submit("q-1", max_tokens=LONG)
        assert_whole(own)
        wait_until(lambda: not running.engine.has_work(), description="what nobody knows any more is dropped")


def test_a_server_at_its_memory_limit_still_takes_final_words(own: Bench) -> None:
    with running_worker(own, model="echo?step_ms=5"):
        own.submit("q-1", max_tokens=LONG, stream="final")
        wait_until(lambda: own.job("q-1").get("state") == "running", description="it runs")
        own.server.config_set("maxmemory", 1)
        assert_whole(own)
        own.server.config_set("maxmemory", 0)


def test_a_server_that_is_demoted_and_promoted_again_costs_time_and_nothing_else(own: Bench) -> None:
    with running_worker(own, model="echo?step_ms=10"):
        own.submit("q-1", max_tokens=LONG)
        own.wait_tokens(5)
        own.server.replicaof("127.0.0.1", 1)  # it answers READONLY, and sends blocked readers away with UNBLOCKED
        since_s = time.monotonic()
        wait_until(lambda: time.monotonic() - since_s > LEASE_TTL_S / 2, description="everybody was refused")
        own.server.replicaof("NO", "ONE")
        assert_whole(own)
        own.submit("q-2", max_tokens=LONG)
        assert_whole(own, "q-2")
    assert own.is_at_rest()
