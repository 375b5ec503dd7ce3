"""A million rows: the runner's memory stays flat, and its rows a second are stated; the same through RQ."""

import resource
import subprocess
import time
from pathlib import Path

import pytest

from tests.acceptance.bulk_scene import peak_rss_kib, run_to_the_end, scaled, write_rows
from tests.acceptance.fleet import running_fleet
from tests.e2e.commands import command, environment, num_lines, started, tokenmill
from tests.queue.harness import Bench

FEW, MANY = 100_000, 1_000_000
MOST_GROWTH = 1.2
OPTIONS = ("--column", "question", "--max-tokens", 1, "--raw")


@pytest.mark.slow
@pytest.mark.timeout(3_000)
def test_memory_stays_flat_over_a_million_rows(own: Bench, tmp_path: Path) -> None:
    own.server.config_set("appendonly", "no")  # its file would take gigabytes of the test's disk
    options = ("--redis", own.url, *OPTIONS)
    peaks_kib = []
    with running_fleet(own, tmp_path, model="echo", max_num_seqs=512, lease_ttl_s=15.0) as fleet:
        fleet.start_ready()
        for num in (scaled(FEW), scaled(MANY)):
            rows = write_questions(tmp_path, num)
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


@pytest.mark.slow
@pytest.mark.timeout(3_000)
def test_memory_stays_flat_over_a_million_rows_through_rq(own: Bench, tmp_path: Path) -> None:
    own.server.config_set("appendonly", "no")
    peaks_kib = []
    with running_fleet(own, tmp_path, model="echo", max_num_seqs=512, lease_ttl_s=15.0) as fleet:
        fleet.start_ready()
        for num in (scaled(FEW), scaled(MANY)):
            rows, out = write_questions(tmp_path, num), tmp_path / f"{num}.out.jsonl"
            started_s = time.monotonic()
            peaks_kib.append(_carried_by_rq(own, rows, out))
            took_s = time.monotonic() - started_s
            assert num_lines(out) == num
            print(
                f"\n{num:,} rows through RQ in {took_s:.0f} s: {num / took_s:,.0f} rows/s, {peaks_kib[-1] >> 10} MiB",
                end="",
            )
    print()
    assert peaks_kib[1] <= MOST_GROWTH * peaks_kib[0]


def write_questions(folder: Path, num: int) -> Path:
    return write_rows(folder / f"{num}.jsonl", ({"question": f"row {number}"} for number in range(num)))


def _carried_by_rq(bench: Bench, rows: Path, out: Path) -> int:
    """A run of a fresh bulk worker, from its submission to its end. Returns the worker's peak memory, KiB."""
    with started("bulk", "worker", "--redis", bench.url) as worker:
        submitted = tokenmill("bulk", "submit", rows, "--out", out, "--redis", bench.url, *OPTIONS)
        assert submitted.returncode == 0, submitted.stderr
        run_id = submitted.stdout.strip()
        subprocess.run(
            command("bulk", "watch", run_id, "--redis", bench.url), env=environment(), check=True, timeout=2_400
        )
        return peak_rss_kib(worker.pid)


def _children_cpu_s() -> float:
    """Of those that have ended: the runner, and no worker yet."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
