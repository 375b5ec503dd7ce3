"""Many streaming clients on one gateway process: none fails; what they wait for and what it costs is printed."""

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.rivals.common import percentile
from tests.acceptance.fleet import running_fleet
from tests.queue.harness import Bench
from tests.support.doors import CHAT, RESPONSES, Door, Visitor, open_doors, visitor

STEP_MS = 100  # a token every tenth of a second for each: ten thousand a second for a thousand clients


def test_none_of_a_hundred_clients_fails(bench: Bench, tmp_path: Path) -> None:
    check(bench, tmp_path, num_clients=100, max_tokens=10)


@pytest.mark.slow
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_none_of_a_thousand_clients_fails(bench: Bench, tmp_path: Path, path: str) -> None:
    check(bench, tmp_path, num_clients=1_000, max_tokens=150, path=path)


def check(bench: Bench, folder: Path, *, num_clients: int, max_tokens: int, path: str = CHAT) -> None:
    settings = {"model": f"echo?step_ms={STEP_MS}", "max_num_seqs": num_clients, "lease_ttl_s": 15.0}
    with (
        running_fleet(bench, folder, **settings, kv_cache_tokens=1 << 20, max_num_batched_tokens=8_192) as fleet,
        open_doors(bench.url, bench.keys.queue, folder) as doors,
    ):
        fleet.start_ready()
        (door,) = doors.open
        before_mib = door.rss_mib
        crowd = [visitor(doors, path, number, max_tokens=max_tokens) for number in range(num_clients)]
        asyncio.run(visit(crowd))
        tell(crowd, door, before_mib)
        assert all(len(one.visits) == 1 for one in crowd), "somebody was cut off"
        assert all(len(one.text) > 0 for one in crowd)
        assert num_told(bench, crowd) == num_clients * max_tokens


async def visit(crowd: list[Visitor]) -> None:
    await asyncio.wait_for(asyncio.gather(*(one.run() for one in crowd)), timeout=200)


def num_told(bench: Bench, crowd: list[Visitor]) -> int:
    return sum(len(bench.result(one.name).token_ids) for one in crowd)


def tell(crowd: list[Visitor], door: Door, before_mib: float) -> None:
    times_s = [one.token_times_s for one in crowd]
    firsts_ms = [1000 * times[0] for times in times_s]
    gaps_ms = [1000 * (b - a) for times in times_s for a, b in pairwise(times) if b > a]
    print(
        f"\n{len(crowd)} clients at once, {len(gaps_ms)} chunks: first token p50 {percentile(firsts_ms, 50):.0f} ms, "
        f"p99 {percentile(firsts_ms, 99):.0f}; between chunks p50 {percentile(gaps_ms, 50):.0f} ms, "
        f"p99 {percentile(gaps_ms, 99):.0f}; gateway {before_mib:.0f} MiB before, {door.rss_mib:.0f} after"
    )
