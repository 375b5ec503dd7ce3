"""What the rivals' scripts share: a worker child, orders from the benchmark, waiting for results. Knows no queue."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from statistics import quantiles
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import redis

NUM_WARM_UP = 200
TEXT = "x" * 200
POLL_S = 0.005
LOOK = 500  # results looked at by one command


class Rival(NamedTuple):
    """`enqueue(n)` sends n jobs and tells the keys of their results; `round_trip` does one job and waits for it."""

    name: str
    module: str
    packages: Sequence[str]
    client: "redis.Redis"
    enqueue: Callable[[int], Sequence[str]]
    round_trip: Callable[[], object]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", required=True)
    parser.add_argument("--serve", action="store_true", help="be the worker")
    return parser.parse_args()


def obey(rival: Rival, url: str) -> None:
    """One order in each line of the input, `enqueue 500`; one JSON value in answer to each, in a line of the output.

    `enqueue` comes first: its jobs are the worker's warm-up. Between orders the worker is stopped.
    """
    answer({name: version(name) for name in rival.packages})
    backlog = answer_rate(rival, *sys.stdin.readline().split())
    with worker_of(rival.module, url) as pid:
        with awake(pid):
            wait_results(rival.client, backlog)
        for order in iter(sys.stdin.readline, ""):
            with awake(pid):
                answer(carry_out(rival, *order.split()))


def answer_rate(rival: Rival, order: str, num: str) -> Sequence[str]:
    assert order == "enqueue", order
    started_s = time.perf_counter()
    keys = rival.enqueue(int(num))
    answer(int(num) / (time.perf_counter() - started_s))
    return keys


def carry_out(rival: Rival, order: str, num: str) -> float | list[float]:
    if order == "round_trips":
        return timed_ms(rival.round_trip, int(num))
    assert order == "end_to_end", order
    wait_results(rival.client, rival.enqueue(NUM_WARM_UP))
    started_s = time.perf_counter()
    wait_results(rival.client, rival.enqueue(int(num)))
    return int(num) / (time.perf_counter() - started_s)


def answer(value: object) -> None:
    print(json.dumps(value), flush=True)


@contextlib.contextmanager
def worker_of(module: str, url: str) -> Iterator[int]:
    """The pid of the script's own worker process, this file's counterpart of `tokenmill worker`."""
    command = [sys.executable, "-m", module, "--redis", url, "--serve"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield child.pid
    finally:
        child.terminate()
        child.send_signal(signal.SIGCONT)
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def awake(pid: int) -> Iterator[None]:
    """A process that sleeps but for now: what it does when it is idle must not cost others anything."""
    os.kill(pid, signal.SIGCONT)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGSTOP)


def wait_results(client: "redis.Redis", keys: Sequence[str]) -> None:
    """Returns once every one of these keys is there. Looks at the first ones missing: results come nearly in order."""
    done, deadline = 0, time.monotonic() + 600
    while done < len(keys):
        some = keys[done : done + LOOK]
        if client.exists(*some) == len(some):
            done += len(some)
            continue
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(keys) - done} results did not come")
        time.sleep(POLL_S)


def timed_ms(action: Callable[[], object], num: int) -> list[float]:
    """After a tenth of them as a warm-up."""
    times_ms = []
    for _ in range(num + num // 10):
        started_s = time.perf_counter()
        action()
        times_ms.append((time.perf_counter() - started_s) * 1000)
    return times_ms[-num:]


def percentile(values: Sequence[float], percent: int) -> float:
    """Of at least two values, between neighbours where it falls there."""
    return quantiles(values, n=100, method="inclusive")[percent - 1]
