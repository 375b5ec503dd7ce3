"""Three workers replaced one after the other by SIGTERM under load: nobody notices but the clock."""

import time
from pathlib import Path

import pytest

from tests.acceptance.fleet import Load, WorkerProcess, running_fleet
from tests.queue.harness import Bench

NUM_WORKERS = 3
HELD_BACK = 3  # bytes of a split character that a handed-back request had drawn and could not tell yet


@pytest.mark.parametrize(
    ("num_requests", "max_tokens", "drain_timeout_s"),
    [pytest.param(48, 30, 0.1, id="quick"), pytest.param(400, 150, 2.0, id="full", marks=pytest.mark.slow)],
)
def test_a_rolling_restart_fails_nothing_and_computes_nothing_again(
    bench: Bench, tmp_path: Path, num_requests: int, max_tokens: int, drain_timeout_s: float
) -> None:
    load = Load.echo(num_requests, max_tokens=max_tokens)
    with running_fleet(bench, tmp_path, drain_timeout_s=drain_timeout_s, lease_ttl_s=5.0) as fleet:
        old = fleet.start_ready(NUM_WORKERS)
        load.submit(bench)
        load.wait_published(bench, load.num_tokens // 10)
        for worker in old:
            took_s = _replace(worker)
            fleet.start_ready()
            print(
                f"\nworker {worker.process.pid}: gone {took_s:.2f} s after SIGTERM (drain time {drain_timeout_s:g} s)"
            )
        load.wait_final(bench, timeout=120.0)
        load.assert_answered(bench)
        jobs = [bench.job(name) for name in load.requests]
        num_drawn = fleet.num_drawn
        assert [worker.terminate() for worker in fleet.started[NUM_WORKERS:]] == [0] * NUM_WORKERS
    num_handed_back = sum(int(job["handed_back"]) for job in jobs)
    print(f"{num_handed_back} handed back, {num_drawn - load.num_tokens} of {load.num_tokens} tokens drawn again")
    assert num_handed_back > 0
    assert {(job["failed"], job["crashed"]) for job in jobs} == {("0", "0")}
    assert 0 <= num_drawn - load.num_tokens <= HELD_BACK * num_handed_back
    assert bench.is_at_rest()


def _replace(worker: WorkerProcess) -> float:
    """Seconds it took to go."""
    start_s = time.monotonic()
    assert worker.terminate() == 0, worker.log
    return time.monotonic() - start_s
