"""What the rivals' scripts share: a worker child, waiting for results, figures, the JSON line. Knows no queue."""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from statistics import quantiles
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import redis

NUM_WARM_UP = 200
TEXT = "x" * 200
POLL_S = 0.005


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", required=True)
    parser.add_argument("--num-jobs", type=int, required=True)
    parser.add_argument("--round-trips", type=int, required=True)
    parser.add_argument("--serve", action="store_true", help="be the worker")
    return parser.parse_args()


@contextlib.contextmanager
def worker_of(module: str, url: str) -> Iterator[None]:
    """The script's own worker process, this file's counterpart of `tokenmill worker`."""
    command = [sys.executable, "-m", module, "--redis", url, "--num-jobs", "0", "--round-trips", "0", "--serve"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_results(client: "redis.Redis", keys: Sequence[str]) -> None:
    """Returns once every one of these keys is there. Looks at the first ones missing: results come nearly in order."""
    done, deadline = 0, time.monotonic() + 600
    while done < len(keys):
        pipe = client.pipeline(transaction=False)
        for key in keys[done : done + 500]:
            pipe.exists(key)
        found = pipe.execute()
        done += found.index(0) if 0 in found else len(found)
        if 0 in found:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(keys) - done} results did not come")
            time.sleep(POLL_S)


def figures(
    *, num_jobs: int, enqueue: Callable[[int], Sequence[str]], client: "redis.Redis", module: str, url: str,
    round_trip: Callable[[], object], num_round_trips: int,
) -> dict[str, float]:  # fmt: skip
    """`enqueue(n)` sends n jobs and tells the keys of their results."""
    started_s = time.perf_counter()
    backlog = enqueue(num_jobs)
    enqueue_s = time.perf_counter() - started_s
    with worker_of(module, url):
        wait_results(client, backlog)
        wait_results(client, enqueue(NUM_WARM_UP))
        started_s = time.perf_counter()
        wait_results(client, enqueue(num_jobs))
        end_to_end_s = time.perf_counter() - started_s
        times_ms = timed_ms(round_trip, num_round_trips)
    return {
        "enqueue_per_s": num_jobs / enqueue_s,
        "end_to_end_per_s": num_jobs / end_to_end_s,
        "round_trip_p50_ms": percentile(times_ms, 50),
    }


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


def print_line(rival: str, found: Mapping[str, float], packages: Sequence[str]) -> None:
    print(json.dumps({"rival": rival, **found, "packages": {name: version(name) for name in packages}}))
