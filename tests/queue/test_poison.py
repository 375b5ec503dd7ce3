"""Requests that take the whole process down: caught, told, and nobody else's loss."""

import os
import signal
from collections.abc import Sequence

import pytest
from tokenmill import Client, RequestFailedError
from tokenmill.wire.keys import MAX_ALONE_CRASHES, MAX_CRASHES, Lane
from tokenmill_worker.engine import Engine
from tokenmill_worker.engine.api import TokenEvent
from tokenmill_worker.observe.watch import Watch

from tests.queue.harness import Bench, Supervisor, running_worker, uninterrupted_text, worker_process
from tests.support.waiting import wait_until

NUM_INNOCENTS = 63


def test_one_poison_prompt_among_64_is_dead_lettered_and_the_others_are_answered(bench: Bench) -> None:
    innocents = {f"q-{number}": f"tell me about {number}" for number in range(NUM_INNOCENTS)}
    for number, (request_id, prompt) in enumerate(innocents.items()):
        bench.submit(request_id, prompt=prompt, max_tokens=20)
        if number == NUM_INNOCENTS // 2:
            bench.submit("poison", prompt="this is poison")
    with Supervisor(bench, "--model", "echo?abort_on=poison", "--max-num-seqs", "64") as supervisor:
        with Client(bench.url, queue=bench.keys.queue) as client, pytest.raises(RequestFailedError) as caught:
            client.job("poison").result(timeout=60)
        for request_id, prompt in innocents.items():
            terminal = bench.terminal(request_id)
            assert terminal.type == "done"
            assert terminal.text == uninterrupted_text(prompt, max_tokens=20, temperature=0.0)
        wait_until(lambda: not bench.statistics().depth, description="nothing waits")
    assert caught.value.code == "worker_crashed"
    assert supervisor.exit_codes == [-signal.SIGABRT] * (MAX_CRASHES + MAX_ALONE_CRASHES)
    (letter,) = bench.dead_letters()
    assert (letter[b"id"], b"this is poison" in letter[b"body"]) == (b"poison", True)


@pytest.fixture
def suspect(bench: Bench) -> str:
    """A request in quarantine."""
    bench.submit("suspect", lane=Lane.QUARANTINE, max_tokens=20)
    return "suspect"


def test_a_suspect_is_served_when_nothing_else_is_to_do(bench: Bench, suspect: str) -> None:
    with running_worker(bench) as running:
        assert bench.terminal(suspect).type == "done"
        assert running.worker.consumer.statistics().num_quarantined == 1
    assert bench.is_at_rest()


def test_a_burst_ends_only_when_the_quarantine_lane_is_empty_too(bench: Bench, suspect: str) -> None:
    for number in range(3):
        bench.submit(f"q-{number}")
    bench.submit("another", lane=Lane.QUARANTINE)
    with running_worker(bench, burst=True) as running:
        running.wait_end()
    assert {bench.terminal(request_id).type for request_id in (suspect, "another", "q-0", "q-1", "q-2")} == {"done"}
    assert bench.is_at_rest()


def test_a_queue_that_never_rests_cannot_starve_the_quarantine_lane(bench: Bench, suspect: str) -> None:
    for number in range(400):
        bench.submit(f"q-{number}", max_tokens=60)
    with running_worker(bench, patience_s=0.2, model="echo?step_ms=2") as running:
        assert bench.terminal(suspect).type == "done"
        assert bench.statistics().depth, "the queue was busy all the time"
        seen = running.worker.consumer.statistics()
    assert seen.num_quarantined == 1


def test_a_suspect_runs_alone(bench: Bench) -> None:
    steps: list[set[str]] = []  # who got a token in each

    def note(engine: Engine, events: Sequence[TokenEvent], started_s: float) -> None:
        steps.append({event.request_id for event in events})

    suspects = {f"s-{number}" for number in range(3)}
    for name in suspects:
        bench.submit(name, lane=Lane.QUARANTINE, max_tokens=30)
    with running_worker(bench, model="echo?step_ms=2", watch=Watch(stepped=(note,))):
        wait_until(lambda: any(steps), description="the first one runs")
        for number in range(8):
            bench.submit(f"q-{number}", max_tokens=30)
        assert bench.terminal("q-7").type == "done"
        assert {bench.terminal(name).type for name in suspects} == {"done"}
    with_suspects = [names for names in steps if names & suspects]
    assert set().union(*with_suspects) == suspects
    assert max(map(len, with_suspects)) == 1
    assert max(map(len, steps)) > 1, "the others run together"


def test_a_suspect_that_was_read_and_never_begun_goes_back_when_its_worker_drains(bench: Bench) -> None:
    with running_worker(bench, patience_s=0.0, model="echo?step_ms=10"):
        bench.submit("q-1", max_tokens=4000)
        bench.wait_tokens(3)
        bench.submit("suspect", lane=Lane.QUARANTINE)
        wait_until(lambda: bench.statistics().lanes["q"].in_flight, description="it is read")
        assert bench.job("suspect")["state"] == "queued"
    assert bench.statistics().lanes["q"].backlog == 1
    assert bench.job("suspect")["crashed"] == "0"


def test_a_worker_that_is_killed_while_a_suspect_runs_with_progress_is_no_proof(bench: Bench) -> None:
    bench.submit("suspect", lane=Lane.QUARANTINE, max_tokens=150)
    with worker_process(bench) as child:
        bench.wait_tokens(10, "suspect")
        os.kill(child.pid, signal.SIGKILL)
        child.wait(timeout=10)
    with running_worker(bench):
        assert bench.terminal("suspect").type == "done"
    assert "alone" not in bench.job("suspect"), "it grew under the one that was killed"
    assert bench.result("suspect").text == uninterrupted_text("hello", temperature=0.0, max_tokens=150)
