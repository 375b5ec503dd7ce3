"""20 requests, their only worker killed with SIGKILL, a new one at once: all finish, none twice."""

import time
from pathlib import Path

import pytest

from tests.acceptance.fleet import Load, running_fleet
from tests.queue.harness import Bench
from tests.support.waiting import wait_until

NUM_REQUESTS, NUM_ROWS, STEP_S = 20, 2, 0.02
KILL_AFTER_S = 5.0
LEASE_S = 15.0  # the default, with which the figure is meant
NUM_TOKENS = 50  # a second each


def test_every_request_of_a_killed_worker_is_finished_once(bench: Bench, tmp_path: Path) -> None:
    load = Load.echo(NUM_REQUESTS, max_tokens=12)
    with running_fleet(bench, tmp_path, max_num_seqs=NUM_ROWS) as fleet:
        (first,) = fleet.start_ready()
        load.submit(bench)
        load.wait_final(bench, 5)
        first.kill()
        fleet.start()
        load.wait_final(bench)
        load.assert_answered(bench)
        assert fleet.started[1].terminate() == 0
    assert bench.is_at_rest()


@pytest.mark.slow
def test_they_finish_within_the_lease_and_the_work_that_remained(bench: Bench, tmp_path: Path) -> None:
    load = Load.echo(NUM_REQUESTS, max_tokens=NUM_TOKENS)
    _wait_until_leases_are_trusted(bench)
    with running_fleet(bench, tmp_path, max_num_seqs=NUM_ROWS, lease_ttl_s=LEASE_S) as fleet:
        (first,) = fleet.start_ready()
        load.submit(bench)
        _pass_time(KILL_AFTER_S)
        first.kill()
        killed_s = time.monotonic()
        remaining_s = (load.num_tokens - load.num_published(bench)) * STEP_S / NUM_ROWS
        num_final = load.num_final(bench)
        fleet.start()
        load.wait_final(bench, timeout=120.0)
        took_s = time.monotonic() - killed_s
        load.assert_answered(bench)
    print(
        f"\n{num_final} of {NUM_REQUESTS} were final at the kill; all {took_s:.1f} s after it "
        f"(lease {LEASE_S:g} s, remaining work {remaining_s:.1f} s)"
    )
    assert took_s <= LEASE_S + remaining_s


def _wait_until_leases_are_trusted(bench: Bench) -> None:
    """A server that has just started is not asked who is dead."""
    wait_until(
        lambda: bench.server.info("server")["uptime_in_seconds"] > 2 * LEASE_S, description="uptime", timeout=60.0
    )


def _pass_time(seconds: float) -> None:
    end_s = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= end_s, description="time passes", timeout=seconds + 1)
