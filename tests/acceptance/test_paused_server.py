"""The server holds still under load for longer than any lease: work resumes, nothing is stolen, nothing is lost."""

import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.acceptance.fleet import Fleet, Load, running_fleet
from tests.queue.harness import Bench
from tests.support.servers import paused
from tests.support.waiting import wait_until


class Form(NamedTuple):
    pause_s: float
    lease_ttl_s: float
    num_requests: int
    max_tokens: int


QUICK = Form(pause_s=2.1, lease_ttl_s=0.7, num_requests=40, max_tokens=30)
FULL = Form(pause_s=60.0, lease_ttl_s=15.0, num_requests=400, max_tokens=100)


@pytest.mark.parametrize(
    "form", [pytest.param(QUICK, id="quick"), pytest.param(FULL, id="full", marks=pytest.mark.slow)]
)
def test_a_pause_beyond_every_lease_costs_time_and_nothing_else(own: Bench, tmp_path: Path, form: Form) -> None:
    load = Load.echo(form.num_requests, max_tokens=form.max_tokens)
    with running_fleet(own, tmp_path, lease_ttl_s=form.lease_ttl_s) as fleet:
        fleet.start_ready(2)
        _wait_until_leases_are_trusted(own, form.lease_ttl_s)
        load.submit(own)
        load.wait_published(own, load.num_tokens // 10)
        with paused(own.url):
            end_s = time.monotonic() + form.pause_s
            wait_until(lambda: time.monotonic() > end_s, description="the pause passes", timeout=form.pause_s + 1)
        resumed_s = time.monotonic()
        load.wait_final(own, timeout=120.0)
        load.assert_answered(own)
        _assert_nothing_was_stolen(own, load, fleet)
        print(
            f"\nall {form.num_requests} final {time.monotonic() - resumed_s:.1f} s after a pause of {form.pause_s:g} s"
        )
        assert [worker.terminate() for worker in fleet.started] == [0, 0]
    assert own.is_at_rest()


def _assert_nothing_was_stolen(bench: Bench, load: Load, fleet: Fleet) -> None:
    """Each request had one owner, no worker lost its lease, and no token was drawn twice."""
    jobs = [bench.job(name) for name in load.requests]
    assert {(job["fence"], job["crashed"], job["failed"]) for job in jobs} == {("1", "0", "0")}
    assert fleet.num_drawn == load.num_tokens
    assert "lost its lease" not in fleet.log
    assert "took over" not in fleet.log


def _wait_until_leases_are_trusted(bench: Bench, lease_ttl_s: float) -> None:
    """A young server's leases are not judged, and a pause would prove nothing."""
    wait_until(
        lambda: bench.server.info("server")["uptime_in_seconds"] > 2 * lease_ttl_s, description="uptime", timeout=60.0
    )
