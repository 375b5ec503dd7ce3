"""Workers that go: drained, killed, cut off. Whatever happens to them, their requests are finished, and read as one."""

import signal
import threading

import pytest
from tokenmill.wire.errors import FencedError
from tokenmill.wire.messages import DeltaEntry
from tokenmill.wire.store import Publication

from tests.queue.harness import Bench, Result, running_worker, uninterrupted_text, worker_process
from tests.support.waiting import wait_until

LONG = 150
PROMPTS = {f"q-{number}": f"tell me about the number {number}" for number in range(4)}


def submit_all(bench: Bench) -> None:
    """Greedy and drawn, with a stop string that may come, one and several choices."""
    for number, (request_id, prompt) in enumerate(PROMPTS.items()):
        bench.submit(request_id, prompt=prompt, max_tokens=LONG, temperature=float(number % 2), n=1 + number // 3)


def assert_uninterrupted(bench: Bench) -> None:
    """Streamed and told text equal what a worker says that nothing happens to, also where characters were split."""
    for number, (request_id, prompt) in enumerate(PROMPTS.items()):
        result = bench.wait_result(request_id, timeout=30.0)
        assert result.terminal is not None
        assert result.terminal.type == "done"
        assert_contiguous(result)
        assert result.terminal.text == result.text
        assert result.terminal.usage.completion_tokens == LONG * (1 + number // 3)
        if number % 2 == 0:
            assert result.text == uninterrupted_text(prompt, temperature=0.0, max_tokens=LONG)


def assert_contiguous(result: Result) -> None:
    end = 0
    for delta in result.deltas:
        assert delta.offset == end
        end = delta.end


@pytest.fixture
def undisturbed(bench: Bench) -> dict[str, str]:
    """The text of each request, seeds included, on a queue where nothing happens."""
    other = Bench(bench.url, bench.server, type(bench.keys)(f"{bench.keys.queue}-undisturbed"))
    submit_all(other)
    with running_worker(other):
        texts = {request_id: other.wait_result(request_id).text for request_id in PROMPTS}
    return texts


def test_a_drained_worker_hands_back_and_another_one_goes_on_where_it_stopped(
    bench: Bench, undisturbed: dict[str, str]
) -> None:
    with running_worker(bench, model="echo?step_ms=10"):
        submit_all(bench)
        for request_id in PROMPTS:
            bench.wait_tokens(10, request_id)
    assert not bench.workers()
    states = {request_id: bench.job(request_id) for request_id in PROMPTS}
    assert {job["state"] for job in states.values()} == {"queued"}
    assert {(job["handed_back"], job["crashed"]) for job in states.values()} == {("1", "0")}
    with running_worker(bench) as second:
        assert_uninterrupted(bench)
        statistics = second.engine.statistics()
    told = sum(int(job["published"]) for job in states.values())
    assert statistics.num_decode_tokens <= 5 * LONG - told
    assert {request_id: bench.result(request_id).text for request_id in PROMPTS} == undisturbed
    assert bench.is_at_rest()


def test_a_worker_says_goodbye_when_it_no_longer_renews(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_worker(bench) as running:
        lease = running.worker.lease
        renewing: list[bool] = []
        leave = lease.leave

        def leave_and_look() -> None:
            renewing.extend(thread.name == "tokenmill-lease" for thread in threading.enumerate())
            leave()

        monkeypatch.setattr(lease, "leave", leave_and_look)
    assert not any(renewing)
    assert bench.is_at_rest()


def test_a_continued_request_keeps_the_time_of_its_first_token(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=10"):
        bench.submit("q-1", max_tokens=LONG)
        bench.wait_tokens(10)
    job = bench.job()
    with running_worker(bench):
        timings = bench.terminal().timings
    assert timings.first_token == int(job["first_token_ms"]) - int(job["accepted_ms"])
    assert timings.queued is not None
    assert timings.queued > timings.first_token, "queued: until its last worker began it"


def test_a_drain_finishes_what_fits_into_its_time(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=5", drain_timeout_s=20.0) as running:
        bench.submit("q-1", max_tokens=100)
        bench.wait_tokens(5)
        running.stop()
        terminal = bench.result("q-1").terminal
    assert terminal is not None
    assert terminal.type == "done"
    assert bench.is_at_rest()


def test_raw_entries_that_were_read_ahead_keep_their_ids_when_they_are_handed_back(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=10", max_num_seqs=1, max_num_batched_tokens=16):
        bench.submit("long", max_tokens=4000)
        bench.wait_tokens(1, "long")
        ids = [bench.add_raw({"body": b'{"prompt": "hi", "max_tokens": 4}'}) for _ in range(6)]
        wait_until(lambda: bench.job(ids[0]).get("state") == "running", description="they are read ahead")
    bench.store.run(bench.transitions.cancel(["long"]))
    with running_worker(bench):
        assert {bench.terminal(request_id).type for request_id in ids} == {"done"}


def test_the_requests_of_a_killed_worker_are_finished_by_another_with_identical_text(
    bench: Bench, undisturbed: dict[str, str]
) -> None:
    with worker_process(bench) as first:
        wait_until(bench.workers, description="the first worker is there", timeout=30.0)
        (doomed,) = bench.workers()
        submit_all(bench)
        for request_id in PROMPTS:
            bench.wait_tokens(10, request_id)
        first.send_signal(signal.SIGKILL)
        first.wait(timeout=10)
    with running_worker(bench):
        assert_uninterrupted(bench)
    assert {request_id: bench.result(request_id).text for request_id in PROMPTS} == undisturbed
    assert {bench.job(request_id)["crashed"] for request_id in PROMPTS} == {"0"}
    assert doomed not in bench.workers()
    assert bench.is_at_rest()


def test_what_another_model_told_is_discarded_and_told_anew(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=10"):
        bench.submit("q-1", max_tokens=LONG)
        bench.wait_tokens(10)
    bench.server.hset(bench.keys.job("q-1"), "fingerprint", "another model")
    with running_worker(bench):
        result = bench.wait_result("q-1")
    assert result.num_resets == 1
    assert result.text == uninterrupted_text("hello", temperature=0.0, max_tokens=LONG)
    assert bench.job("q-1")["epoch"] == "1"


def test_what_an_earlier_worker_told_beyond_this_ones_limit_is_refused_and_harms_nobody(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=10"):
        bench.submit("q-1", max_tokens=LONG)
        bench.wait_tokens(60)
    with running_worker(bench, model="echo?max_model_len=40"):
        bench.submit("q-2")
        terminal = bench.terminal("q-1")
        assert bench.terminal("q-2").type == "done"
    assert terminal.error is not None
    told = bench.result("q-1")
    assert terminal.text == told.text != ""
    assert terminal.usage.completion_tokens == len(told.token_ids)


def test_a_worker_that_lost_its_lease_writes_nothing_and_comes_back_under_a_new_name(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=10") as running:
        bench.submit("q-1", max_tokens=LONG)
        bench.wait_tokens(10)
        old = running.worker.lease.worker
        # What a reaper does first: from now on nothing that this name writes is accepted.
        bench.server.zrem(bench.keys.workers, old)
        bench.server.zadd(bench.keys.dead_workers, {old: 1})
        wait_until(lambda: running.worker.lease.worker != old, description="a new name")
        assert_uninterrupted_single(bench)
        assert old not in bench.workers()
    assert bench.is_at_rest()


def assert_uninterrupted_single(bench: Bench) -> None:
    result = bench.wait_result("q-1")
    assert result.text == uninterrupted_text("hello", temperature=0.0, max_tokens=LONG)
    assert_contiguous(result)


def test_a_zombie_is_refused_whatever_it_writes(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=10") as running:
        bench.submit("q-1", max_tokens=LONG)
        bench.wait_tokens(10)
        (zombie,) = running.worker.holdings.tenures()
    late = DeltaEntry(offset=10, text="zombie", token_ids=(1,))
    stale = Publication("q-1", zombie.fence, zombie.epoch, (late,))
    (reply,) = bench.store.run(bench.transitions.publish(zombie.worker, [stale]))
    assert reply.status == "fenced"
    with pytest.raises(FencedError):
        bench.store.run(bench.transitions.begin(zombie.worker, []))
