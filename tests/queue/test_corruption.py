"""Somebody else writes into our keys: the request concerned is told so, its neighbours and the worker go on."""

from collections.abc import Callable

import pytest
from tokenmill.wire.keys import Lane

from tests.queue.harness import Bench, running_worker
from tests.support.waiting import wait_until

Plant = Callable[[Bench, str], object]


def make_a_list(bench: Bench, key: str) -> None:
    bench.server.delete(key)
    bench.server.rpush(key, "junk")


def make_a_string(bench: Bench, key: str) -> None:
    bench.server.set(key, "junk")


BEFORE: dict[str, Plant] = {
    "job is a list": lambda bench, name: make_a_list(bench, bench.keys.job(name)),
    "result is a string": lambda bench, name: make_a_string(bench, bench.keys.result(name)),
    "result has a foreign entry": lambda bench, name: bench.server.xadd(bench.keys.result(name), {"a": "b"}),
    "times are no numbers": lambda bench, name: bench.server.hset(bench.keys.job(name), "accepted_ms", "junk"),
    "fence is no number": lambda bench, name: bench.server.hset(bench.keys.job(name), "fence", "junk"),
    "group is another": lambda bench, name: bench.server.hset(bench.keys.job(name), "group", "other"),
}
MEANWHILE: dict[str, Plant] = {
    "job is a list": BEFORE["job is a list"],
    "result is a string": BEFORE["result is a string"],
    "result has a foreign entry": BEFORE["result has a foreign entry"],
    "group is another": BEFORE["group is another"],
    "lane is another": lambda bench, name: bench.server.hset(bench.keys.job(name), "lane", "junk"),
}


def assert_ended(bench: Bench, name: str = "victim") -> None:
    wait_until(bench.dead_letters, description="it is ended, and its result made anew")
    terminal = bench.terminal(name)
    assert terminal.type == "error"
    assert terminal.error is not None
    assert terminal.error.code == "keys_corrupted"
    assert bench.job(name)["state"] == "dead"
    assert [letter[b"id"] for letter in bench.dead_letters()] == [name.encode()]
    assert bench.server.ttl(bench.keys.job(name)) > 0


@pytest.mark.parametrize("case", BEFORE)
def test_a_waiting_request_whose_keys_were_written_to_is_ended_and_its_neighbours_answered(
    bench: Bench, case: str
) -> None:
    for name in ("before", "victim", "after"):
        bench.submit(name)
    BEFORE[case](bench, "victim")
    with running_worker(bench):
        assert {bench.terminal(name).type for name in ("before", "after")} == {"done"}
        assert_ended(bench)
    assert bench.is_at_rest()


@pytest.mark.parametrize("case", MEANWHILE)
def test_a_running_request_whose_keys_were_written_to_is_ended_and_its_neighbours_answered(
    bench: Bench, case: str
) -> None:
    with running_worker(bench, model="echo?step_ms=5") as running:
        for name in ("before", "victim", "after"):
            bench.submit(name, max_tokens=100)
        bench.wait_tokens(5, "victim")
        MEANWHILE[case](bench, "victim")
        assert {bench.terminal(name).type for name in ("before", "after")} == {"done"}
        wait_until(lambda: not running.engine.has_work(), description="the engine drops it")
        assert_ended(bench)
    assert bench.is_at_rest()


def test_a_dead_workers_request_whose_keys_were_written_to_is_ended_by_the_reaper(bench: Bench) -> None:
    bench.store.run(bench.transitions.register("dead", {}, 1000))
    for name in ("before", "victim", "after"):
        bench.submit(name)
    bench.server.xreadgroup("w", "dead", {bench.keys.lane(Lane.NORMAL): ">"})
    make_a_list(bench, bench.keys.job("victim"))
    with running_worker(bench):
        assert {bench.terminal(name).type for name in ("before", "after")} == {"done"}
        assert_ended(bench)
    assert bench.is_at_rest()


def test_a_request_that_was_handed_back_and_has_no_readable_result_any_more_is_ended(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=5"):
        bench.submit("victim", max_tokens=400)
        bench.wait_tokens(10, "victim")
    make_a_string(bench, bench.keys.result("victim"))
    with running_worker(bench):
        assert_ended(bench)


def test_a_lane_that_was_deleted_is_made_again_and_what_runs_is_finished(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=5"):
        bench.submit("q-1", max_tokens=100)
        bench.wait_tokens(5)
        bench.server.delete(*(bench.keys.lane(lane) for lane in Lane))
        bench.submit("q-2")
        assert bench.terminal("q-1").type == bench.terminal("q-2").type == "done"
    assert bench.is_at_rest()


def test_a_lane_that_is_none_any_more_is_waited_for(bench: Bench) -> None:
    with running_worker(bench):
        bench.submit("first")
        bench.wait_result("first")
        make_a_string(bench, bench.keys.lane(Lane.BULK))
        make_a_string(bench, bench.keys.lane(Lane.QUARANTINE))
        (worker,) = bench.workers()
        wait_until(lambda: bench.server.delete(bench.keys.lane(Lane.BULK)), description="it is repaired")
        bench.server.delete(bench.keys.lane(Lane.QUARANTINE))
        bench.submit("bulk", lane=Lane.BULK)
        assert bench.terminal("bulk").type == "done"
        assert bench.workers() == [worker]


def test_an_index_that_all_requests_share_is_nobodys_fault_and_is_waited_for(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with running_worker(bench, model="echo?step_ms=5"):
        bench.submit("q-1", max_tokens=20, deadline_s=60)
        bench.wait_tokens(5)
        make_a_string(bench, bench.keys.deadlines)
        wait_until(
            lambda: "publishing fails" in caplog.text, description="its last word was refused, and its ending too"
        )
        assert bench.result("q-1").terminal is None
        bench.server.delete(bench.keys.deadlines)
        assert bench.terminal("q-1").type == "done"
    assert not bench.dead_letters()


def test_junk_among_the_deadlines_is_struck_off_and_keeps_nobody_from_expiring(bench: Bench) -> None:
    make_a_list(bench, bench.keys.job("a list"))
    bench.server.zadd(bench.keys.deadlines, {b"\xff\x00": 1, "a list": 2, "nobody": 3, "running": 4})
    bench.server.zadd(bench.keys.not_before, {b"\xfe": 1, "a list": 2, "nobody": 3})
    bench.server.zadd(bench.keys.workers, {b"\xfd": 1})
    with running_worker(bench, model="echo?step_ms=5"):
        bench.submit("long", max_tokens=200)
        bench.submit("late", deadline_s=0.001, lane=Lane.QUARANTINE)
        assert bench.terminal("late").type == "expired"
        wait_until(
            lambda: not bench.server.exists(bench.keys.deadlines, bench.keys.not_before), description="the junk is gone"
        )
        assert bench.terminal("long").type == "done"
