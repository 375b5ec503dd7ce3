"""The engine fails on one request: it is tried again, what was told is kept, and in the end its reader is told."""

from collections.abc import Sequence
from typing import Any

import pytest
from tokenmill.wire.keys import MAX_RETRIES
from tokenmill_worker.engine.batch import PackedBatch, Sampled
from tokenmill_worker.engine.echo import EchoRunner
from tokenmill_worker.queue.quarantine import Quarantine

from tests.queue.harness import Bench, running_worker, uninterrupted_text
from tests.support.waiting import wait_until


def retry_now(bench: Bench, request_id: str = "q-1", *, failed: int = 1) -> None:
    """Once it has failed so often and waits for its retry: now, instead of after the backoff."""

    def is_waiting() -> bool:
        job = bench.job(request_id)
        return (job["state"], job.get("failed")) == ("scheduled", str(failed))

    wait_until(is_waiting, description="it waits for its retry")
    bench.server.zadd(bench.keys.not_before, {request_id: 1})


def test_a_request_on_which_the_engine_always_fails_is_retried_and_then_told(bench: Bench) -> None:
    bench.submit("good")
    bench.submit("q-1", prompt="a bad word")
    with running_worker(bench, model="echo?fail_on=bad") as running:
        for failed in range(MAX_RETRIES):
            retry_now(bench, failed=failed + 1)
        terminal = bench.terminal()
        assert running.worker.publisher.statistics().num_retried == MAX_RETRIES
        assert bench.terminal("good").type == "done"
    assert terminal.error is not None
    assert terminal.error.code == "engine_error"
    assert bench.job()["state"] == "failed"
    assert not bench.dead_letters()
    assert bench.is_at_rest()


@pytest.fixture
def fails_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The echo model raises once, when a row draws its 30th token."""
    run = EchoRunner.run
    failures: list[int] = []

    def failing(self: EchoRunner, batch: PackedBatch) -> Sequence[Sampled]:
        if not failures and any(row.position == 29 for row in batch.samples):
            failures.append(batch.num_rows)
            raise RuntimeError("once")
        return run(self, batch)

    monkeypatch.setattr(EchoRunner, "run", failing)


@pytest.mark.usefixtures("fails_once")
def test_a_retry_goes_on_where_the_request_stood(bench: Bench) -> None:
    with running_worker(bench, model="echo?step_ms=5") as running:
        bench.submit("q-1", max_tokens=60)
        retry_now(bench)
        terminal = bench.terminal()
        num_decoded = running.engine.statistics().num_decode_tokens
    told = bench.result()
    assert terminal.text == told.text == uninterrupted_text("hello", temperature=0.0, max_tokens=60)
    assert num_decoded < 80, "what was told is not generated again"
    assert bench.job()["crashed"] == "0"


@pytest.mark.usefixtures("fails_once")
def test_a_burst_waits_for_its_retries(bench: Bench) -> None:
    bench.submit("q-1", max_tokens=60)
    with running_worker(bench, burst=True) as running:
        retry_now(bench)
        running.wait_end()
    assert bench.terminal().type == "done"
    assert bench.is_at_rest()


def test_a_burst_sees_what_becomes_due_behind_its_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the lanes and the look at what is scheduled, a sweep may bring one to the other."""
    serve, late = Quarantine.serve, ["q-1"]

    def bring(*args: Any, **named: Any) -> int:
        num_left = serve(*args, **named)
        while late:
            bench.submit(late.pop())
        return num_left

    monkeypatch.setattr(Quarantine, "serve", bring)
    with running_worker(bench, burst=True) as running:
        running.wait_end()
    assert bench.terminal().type == "done"
