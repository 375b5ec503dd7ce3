"""Thousands of broken entries on every lane: each gets its end, and the requests beside them never notice."""

import collections
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenmill.wire.keys import Lane
from tokenmill.wire.store import Delivery

from tests.acceptance.fleet import Load, running_fleet
from tests.acceptance.wire_fuzz import Fuzzer
from tests.queue.harness import Bench
from tests.support.servers import keys_without_ttl
from tests.support.waiting import wait_until

SEED = 20_261_123


@pytest.mark.parametrize("num", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_entry_ends_and_the_worker_lives(own: Bench, tmp_path: Path, num: int) -> None:
    running, after = Load.echo(6, max_tokens=300), Load.echo(6, max_tokens=20, name="after")
    fuzzer = Fuzzer(SEED, list(running.requests))
    start_s = time.monotonic()
    with running_fleet(
        own, tmp_path, model="echo?step_ms=1&max_model_len=512", max_num_seqs=32, lease_ttl_s=5.0
    ) as fleet:
        (worker,) = fleet.start_ready()
        running.submit(own)
        added = _add(own, fuzzer, num)
        after.submit(own)
        wait_until(lambda: _is_served(own, worker.is_alive), description="all lanes are empty", timeout=120.0)
        assert worker.is_alive(), worker.log[-2000:]
        running.assert_answered(own)
        after.assert_answered(own)
        ends = _ends(own, added)
        assert "thread ended" not in worker.log
        assert "lost its lease" not in worker.log
        assert worker.terminate() == 0
    print(f"\n{num} entries in {time.monotonic() - start_s:.1f} s: {dict(ends)}")
    assert not ends["nothing"]
    assert own.is_at_rest()
    kept = {own.keys.dead, own.keys.count, *(own.keys.lane(lane) for lane in Lane)}
    assert keys_without_ttl(own.server, own.keys.queue) <= kept


def _add(bench: Bench, fuzzer: Fuzzer, num: int) -> list[Delivery]:
    """By a bare XADD each, hundreds in a trip."""
    added: list[Delivery] = []
    entries = fuzzer.entries(num)
    while some := list(itertools.islice(entries, 500)):
        with bench.server.pipeline(transaction=False) as pipe:
            for lane, fields in some:
                pipe.xadd(bench.keys.lane(lane), fields)
            ids = [entry_id.decode() for entry_id in pipe.execute()]
        added += [Delivery(lane, entry_id, fields) for (lane, fields), entry_id in zip(some, ids, strict=True)]
    return added


def _is_served(bench: Bench, is_alive: Callable[[], bool]) -> bool:
    return not is_alive() or not sum(bench.server.xlen(bench.keys.lane(lane)) for lane in Lane)


def _ends(bench: Bench, added: list[Delivery]) -> "collections.Counter[str]":
    letters = {(fields[b"lane"].decode(), fields[b"entry"].decode()) for fields in bench.dead_letters()}
    return collections.Counter(_end(bench, delivery, letters) for delivery in added)


def _end(bench: Bench, delivery: Delivery, letters: set[tuple[str, str]]) -> str:
    """How an entry ended. One that names a job of nobody, or one that is served already, is acked and no more."""
    if (delivery.lane.value, delivery.entry_id) in letters:
        return "dead letter"
    if not delivery.is_raw:
        return "settled already"
    terminal = bench.result(delivery.request_id).terminal
    return "nothing" if terminal is None else terminal.type
