"""An engine that hangs in a step loses its worker's lease, so that others go on; when it wakes, it is nobody."""

import threading
from collections.abc import Iterator, Sequence

import pytest
from tokenmill_worker.engine.batch import PackedBatch, Sampled
from tokenmill_worker.engine.echo import EchoRunner

from tests.queue.harness import Bench, running_worker, uninterrupted_text
from tests.support.waiting import wait_until

LONG = 60


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The first engine that comes to draw a 20th token hangs there until the event is set."""
    run, wakes, hangs = EchoRunner.run, threading.Event(), threading.Lock()

    def hanging(self: EchoRunner, batch: PackedBatch) -> Sequence[Sampled]:
        if any(row.position == 19 for row in batch.samples) and hangs.acquire(blocking=False):
            wakes.wait(30)
        return run(self, batch)

    monkeypatch.setattr(EchoRunner, "run", hanging)
    yield wakes
    wakes.set()


def test_the_request_of_a_hung_engine_is_finished_by_another_worker(bench: Bench, hung: threading.Event) -> None:
    with running_worker(bench, stall_timeout_s=1.5, model="echo?step_ms=5") as first:
        bench.submit("q-1", max_tokens=LONG)
        bench.wait_tokens(10)
        doomed = first.worker.lease.worker
        with running_worker(bench, stall_timeout_s=30.0):
            terminal = bench.terminal()
        assert terminal.text == bench.result().text == uninterrupted_text("hello", temperature=0.0, max_tokens=LONG)
        hung.set()
        wait_until(lambda: first.worker.lease.worker != doomed, description="it comes back as somebody new")
        bench.submit("q-2")
        assert bench.terminal("q-2").type == "done"
        assert first.worker.lease.statistics().num_fenced == 1
    assert bench.job("q-1")["fence"] == "3"
    assert bench.is_at_rest()


def test_a_worker_whose_engine_hangs_takes_nothing_from_those_who_could_run_it(
    bench: Bench, hung: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    with running_worker(bench, stall_timeout_s=0.5, model="echo?step_ms=5"):
        bench.submit("q-1", max_tokens=LONG)
        wait_until(lambda: "the lease is not renewed" in caplog.text, description="it is seen to hang")
        wait_until(lambda: not bench.server.info("clients")["blocked_clients"], description="its reader stops")
        bench.submit("q-2")
        with running_worker(bench, stall_timeout_s=30.0):
            assert bench.terminal("q-2").type == "done"
            assert bench.job("q-2")["fence"] == "1"  # nobody had begun it before
            assert bench.terminal("q-1").type == "done"
        hung.set()
    assert bench.is_at_rest()
