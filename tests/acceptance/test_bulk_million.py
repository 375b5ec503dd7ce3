"""A million rows: the runner's memory stays flat, and its rows a second are stated."""

import resource
import time
from pathlib import Path

import pytest

from tests.acceptance.bulk_scene import run_to_the_end, scaled, write_rows
from tests.acceptance.fleet import running_fleet
from tests.queue.harness import Bench

FEW, MANY = 100_000, 1_000_000
MOST_GROWTH = 1.2


@pytest.mark.slow
@pytest.mark.timeout(3_000)
def test_memory_stays_flat_over_a_million_rows(own: Bench, tmp_path: Path) -> None:
    own.server.config_set("appendonly", "no")  # its file would take gigabytes of the test's disk
    options = ("--redis", own.url, "--column", "question", "--max-tokens", 1, "--raw")
    peaks_kib = []
    with running_fleet(own, tmp_path, model="echo", max_num_seqs=512, lease_ttl_s=15.0) as fleet:
        fleet.start_ready()
        for num in (scaled(FEW), scaled(MANY)):
            rows = write_rows(tmp_path / f"{num}.jsonl", ({"question": f"row {number}"} for number in range(num)))
            started_s, cpu_s = time.monotonic(), _children_cpu_s()
            run = run_to_the_end(rows, tmp_path / f"{num}.out.jsonl", *options)
            took_s, cpu_s = time.monotonic() - started_s, _children_cpu_s() - cpu_s
            assert run.out.read_bytes().count(b"\n") == num
            peaks_kib.append(run.peak_rss_kib)
            print(
                f"\n{num:,} rows in {took_s:.0f} s: {num / took_s:,.0f} rows/s, {run.peak_rss_kib / 1024:.0f} MiB, "
                f"{cpu_s / num * 1e6:.0f} us of the runner's processor time a row",
                end="",
            )
    print()
    assert peaks_kib[1] <= MOST_GROWTH * peaks_kib[0]


def _children_cpu_s() -> float:
    """Of those that have ended: the runner, and no worker yet."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
