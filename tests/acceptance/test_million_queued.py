"""A million requests wait: what each costs in memory, and that fetching costs no more than with a few."""

import time

import pytest
from tokenmill import Client
from tokenmill.wire.keys import Keys, Lane
from tokenmill.wire.store import Store

from tests.queue.harness import Bench
from tests.support.hands import Hands

NUM_QUEUED, NUM_FETCHED, BATCH = 980_000, 10_000, 10_000
PROMPT = "Why is the sky blue, and since when? Answer in one sentence, please."
MOST_BYTES = 2_000  # a request; what it is, is printed
MOST_SLOWER = 3.0  # server CPU per fetch, a hundred times the depth: flat, but for memory that no cache holds any more

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]


def test_memory_is_stated_and_the_fetch_stays_flat(own: Bench) -> None:
    own.server.config_set("appendonly", "no")  # the figure is of memory; the file would be as large again
    hands = Hands(Store(own.server), Keys())
    with Client(own.url) as client:
        _submit(client, NUM_FETCHED)
        few_us = _fetch_us(own, hands)
        before = own.server.info("memory")["used_memory"]
        start_s = time.monotonic()
        _submit(client, NUM_QUEUED)
        took_s = time.monotonic() - start_s
        num_bytes = (own.server.info("memory")["used_memory"] - before) / NUM_QUEUED
        many_us = _fetch_us(own, hands)
    print(
        f"\n{NUM_QUEUED} queued in {took_s:.0f} s ({NUM_QUEUED / took_s:.0f}/s), {num_bytes:.0f} bytes each; "
        f"server CPU to read and begin one: {few_us:.0f} us with ten thousand queued, {many_us:.0f} with a million"
    )
    assert num_bytes < MOST_BYTES
    assert many_us < MOST_SLOWER * few_us


def _submit(client: Client, num: int) -> None:
    for start in range(0, num, BATCH):
        client.submit_many([{"prompt": PROMPT, "max_tokens": 64} for _ in range(min(BATCH, num - start))])


def _fetch_us(bench: Bench, hands: Hands) -> float:
    """The server's CPU time per request, of reading it from its lane and beginning it."""
    before_s = _cpu_s(bench)
    for _ in range(NUM_FETCHED // 100):
        deliveries = hands.fetch(Lane.NORMAL)
        assert len(deliveries) == 100
        hands.begin(*(delivery.claim() for delivery in deliveries))
    return (_cpu_s(bench) - before_s) / NUM_FETCHED * 1e6


def _cpu_s(bench: Bench) -> float:
    """Not the clock's time, so that what else runs on the machine does not count."""
    used = bench.server.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])
