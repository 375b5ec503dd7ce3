"""Requests that end before their time: cancelled, too late, or refused because their row failed."""

from tests.queue.harness import Bench, running_worker
from tests.support.waiting import wait_until


def test_a_running_request_that_is_cancelled_keeps_its_partial_output(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=10") as running:
        bench.submit("q-1", max_tokens=5000)
        bench.submit("other", max_tokens=30)
        bench.wait_tokens(5)
        assert bench.store.run(bench.transitions.cancel(["q-1"])) == ["flagged"]
        result = bench.wait_result("q-1")
        wait_until(lambda: not running.engine.has_work(), description="the row is free")
        assert bench.terminal("other").type == "done"
    assert result.terminal is not None
    assert (result.terminal.type, result.terminal.finish_reason) == ("cancelled", "cancelled")
    assert 0 < len(result.token_ids) < 5000
    assert result.terminal.text == result.text
    assert bench.job("q-1")["state"] == "cancelled"


def test_a_request_nobody_watches_can_be_cancelled_too(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=10"):
        bench.submit("q-1", max_tokens=5000, stream="final")
        wait_until(lambda: bench.job("q-1").get("state") == "running", description="it runs")
        bench.store.run(bench.transitions.cancel(["q-1"]))
        assert bench.terminal("q-1").type == "cancelled"


def test_a_request_that_is_cancelled_while_it_waits_never_runs(bench: Bench) -> None:
    bench.submit("q-1")
    assert bench.store.run(bench.transitions.cancel(["q-1"])) == ["cancelled"]
    with running_worker(bench) as running:
        bench.submit("q-2")
        bench.wait_result("q-2")
        assert running.engine.statistics().num_finished == 1
    assert bench.terminal("q-1").type == "cancelled"
    assert bench.is_at_rest()


def test_a_running_request_ends_at_its_deadline_with_what_it_has(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=10"):
        bench.submit("q-1", max_tokens=5000, deadline_s=0.4)
        result = bench.wait_result("q-1")
    assert result.terminal is not None
    assert (result.terminal.type, result.terminal.finish_reason) == ("expired", "expired")
    assert result.terminal.text == result.text
    assert result.token_ids


def test_a_request_that_waits_beyond_its_deadline_expires_without_running(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=10", max_num_seqs=1, max_num_batched_tokens=16) as running:
        bench.submit("long", max_tokens=300)
        bench.wait_tokens(1, "long")
        for number in range(20):  # more than the worker reads ahead
            bench.submit(f"q-{number}", deadline_s=0.2)
        assert {bench.terminal(f"q-{number}").type for number in range(20)} == {"expired"}
        assert bench.terminal("long").type == "done"
        assert running.engine.statistics().num_decode_tokens < 330


def test_a_cancelled_row_leaves_the_batch_at_the_next_step_or_the_one_after(bench: Bench) -> None:
    """In steps and not in time: one of 200 ms is longer than the 100 ms in which the cancel must be heard."""
    with running_worker(bench, model="echo?step_ms=200") as running:
        bench.submit("q-1", max_tokens=5000, stream="final")
        wait_until(lambda: running.engine.statistics().num_decode_tokens >= 2, description="it runs")
        bench.store.run(bench.transitions.cancel(["q-1"]))
        num_steps = running.engine.statistics().num_steps  # the step under way is counted already
        wait_until(lambda: not running.engine.statistics().num_running, description="the row is free")
        assert running.engine.statistics().num_steps <= num_steps + 1
        assert bench.terminal("q-1").type == "cancelled"
