"""What the queue itself costs: the echo engine, an embedded Valkey with its append-only file, one worker process.

    make bench-queue
    python -m benchmarks.queue --queued 1000000
    python -m venv /tmp/arq && /tmp/arq/bin/pip install arq hiredis
    python -m venv /tmp/others && /tmp/others/bin/pip install 'celery[redis]' rq hiredis
    python -m benchmarks.queue --rivals arq,celery,rq --rivals-python /tmp/arq/bin/python \
        --rivals-python /tmp/others/bin/python

Measured: enqueueing by submit_many onto a queue that nobody reads; end to end from the first submit to the last
result, a quarter of the requests each time; round trips of one request at a time on an idle queue; CPU a job of
producer, worker and server; CPU shares while 256 and 1,024 requests stream 40 tokens a second each; with --queued,
memory a request and the cost of fetching 1,000 at a depth.

Caveats: a request is a prompt of 200 characters and one token of answer, a rival's job echoes 200 characters: neither
does any work, so these are costs of queueing and no more. Producer, server and worker share this machine's cores, and
speak over loopback TCP. CPU times come in hundredths of a second, and are the better figure on a busy machine. The
worker's main thread computes the echo model, which a device would do; `publisher` is what publishing costs beside it.
When `tokens_per_s` falls short of 40 a request, the machine was too slow, and the shares are of what it did. arq and
Celery want different versions of redis-py, hence two environments; each rival is tuned as its file says, and waited for
by looking whether the keys of its results exist. Round trips and end to end are measured in turn, the same number for
each, and compared round by round (the median of the rounds' ratios stands); whoever is not measured is stopped.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenmill import Client
from tokenmill.embedded import start_embedded
from tokenmill.lifeline import tied_to_us
from tokenmill.wire.keys import MAX_JOBS_PER_CALL, Keys, Lane
from tokenmill.wire.store import Delivery, Held, Store, Transitions, connect

from benchmarks.cpu import process_cpu_s, thread_cpu_s
from benchmarks.report import keep_line, print_json
from benchmarks.rivals.common import NUM_WARM_UP, POLL_S, awake, timed_ms
from benchmarks.rivals.process import RivalProcess, rival_process
from benchmarks.turns import Measured, in_turn, paired_ratios

ROOT = Path(__file__).parents[1]
PROMPT_LENGTH = 200
TOKENS_PER_S = 40
STEP_MS = 1000 // TOKENS_PER_S
SECONDS_STREAMED = 10
BATCH = 10_000  # requests of one submit_many
NUM_FETCHED = 1_000
LEASE_TTL_S = 300  # the worker is stopped while rivals are measured, and shall not lose its lease by that

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Bench:
    """One server, and what is asked of it."""

    url: str
    store: Store
    server_pid: int

    def cpu_s(self) -> float:
        return process_cpu_s(self.server_pid)


def requests(num: int, *, first: int = 0, **more: object) -> list[dict[str, object]]:
    """Prompts of PROMPT_LENGTH characters, no two alike."""
    return [{"prompt": f"{first + i:08d} ".ljust(PROMPT_LENGTH, "x"), "max_tokens": 1, **more} for i in range(num)]


@contextmanager
def bench() -> Iterator[Bench]:
    with start_embedded() as server:
        client = connect(server.tcp_url)
        yield Bench(server.tcp_url, Store(client), int(client.info("server")["process_id"]))
        client.close()


@contextmanager
def worker(on: Bench, queue: str, *, model: str = "echo", max_num_seqs: int = 256) -> Iterator[int]:
    """The pid of a worker that takes requests."""
    flags = {
        "--model": model,
        "--redis": on.url,
        "--queue": queue,
        "--max-num-seqs": max_num_seqs,
        "--max-num-batched-tokens": 8_192,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    environment = os.environ | {
        "TOKENMILL_KV_CACHE_TOKENS": str(1 << 22),
        "TOKENMILL_ENABLE_PREFIX_CACHING": "false",
        "TOKENMILL_LEASE_TTL_S": str(LEASE_TTL_S),
    }
    command = tied_to_us([sys.executable, "-m", "benchmarks.named_worker", "worker", *words])
    with TemporaryDirectory(prefix="tokenmill-bench-") as folder, (Path(folder) / "log").open("wb") as log:
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            with Client(on.url, queue) as client:
                wait(lambda: bool(client.statistics().workers) or child.poll() is not None)
            if child.poll() is not None:
                raise RuntimeError(f"the worker did not start: {(Path(folder) / 'log').read_text()[-500:]}")
            yield child.pid
        finally:
            child.terminate()
            child.wait()


def wait(is_true: Any, *, timeout_s: float = 600.0) -> None:
    give_up_s = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"not after {timeout_s:g} s")
        time.sleep(POLL_S)


# --- enqueueing ---


def enqueue(on: Bench, num: int, *, num_rounds: int) -> Figures:
    """Each round onto a queue of its own; the medians of rate and of CPU a request."""
    rounds = [_enqueue_once(on, f"enqueue-{number}", num) for number in range(num_rounds + 1)][1:]
    middle = sorted(rounds, key=lambda found: found["enqueue_per_s"])[len(rounds) // 2]
    return middle | {"enqueue_per_s_best": max(found["enqueue_per_s"] for found in rounds)}


def _enqueue_once(on: Bench, queue: str, num: int) -> Figures:
    asked = requests(num)
    with Client(on.url, queue) as client:
        client.statistics()
        server_s, producer_s, started_s = on.cpu_s(), time.process_time(), time.perf_counter()
        for start in range(0, num, BATCH):
            client.submit_many(asked[start : start + BATCH])
        taken_s = time.perf_counter() - started_s
        figures = {
            "enqueue_per_s": num / taken_s,
            "enqueue_producer_us": (time.process_time() - producer_s) / num * 1e6,
            "enqueue_server_us": (on.cpu_s() - server_s) / num * 1e6,
        }
    on.store.client.flushall()
    return figures


# --- end to end ---


class Ours:
    """One worker and one client of ours, as a contender; with the CPU a job of producer, worker and server."""

    name = "tokenmill"

    def __init__(self, on: Bench, client: Client, pid: int) -> None:
        self._on = on
        self._client = client
        self._pid = pid

    def round_trips(self, num: int) -> list[float]:
        with awake(self._pid):
            return timed_ms(lambda: _round_trip(self._client), num)

    def end_to_end(self, num: int) -> Figures:
        with awake(self._pid):
            _serve_all(self._client, requests(NUM_WARM_UP))
            before_s, started_s = self._cpu_s(), time.perf_counter()
            _serve_all(self._client, requests(num))
            taken_s = time.perf_counter() - started_s
            spent = {name: (cpu_s - before_s[name]) / num * 1e6 for name, cpu_s in self._cpu_s().items()}
        return {"end_to_end_per_s": num / taken_s, **spent}

    def _cpu_s(self) -> Figures:
        return {
            "job_producer_us": time.process_time(),
            "job_worker_us": process_cpu_s(self._pid),
            "job_server_us": self._on.cpu_s(),
        }


def contest(
    on: Bench, names: Sequence[str], interpreters: Sequence[str], *, num_rounds: int, num: int, num_round_trips: int
) -> tuple[Measured, list[tuple[RivalProcess, float, Measured]]]:
    """Ours, and of each rival itself, its enqueueing rate and its rounds."""
    with ExitStack() as stack:
        rivals = [stack.enter_context(rival_process(name, interpreters, on.url)) for name in names]
        rates = [rival.enqueue(num) for rival in rivals]
        pid = stack.enter_context(worker(on, "e2e"))
        client = stack.enter_context(Client(on.url, "e2e"))
        stack.callback(os.kill, pid, signal.SIGCONT)
        sizes = {"num_rounds": num_rounds, "num_requests": num, "num_round_trips": num_round_trips}
        ours, *theirs = in_turn([Ours(on, client, pid), *rivals], **sizes)
    on.store.client.flushall()
    return ours, list(zip(rivals, rates, theirs, strict=True))


def _serve_all(client: Client, asked: Sequence[Mapping[str, object]]) -> None:
    """A request leaves its lane together with its terminal entry: empty lanes mean that all results are there."""
    jobs = client.submit_many(asked)
    wait(lambda: _num_unfinished(client) == 0)
    assert {jobs[0].status(), jobs[-1].status()} == {"done"}


def _num_unfinished(client: Client) -> int:
    statistics = client.statistics()
    return statistics.depth + statistics.in_flight


def _round_trip(client: Client) -> None:
    client.submit(**requests(1)[0]).result(timeout=30)  # type: ignore[arg-type]  # plain values, checked by submit


# --- publishing ---


def publishing(on: Bench, num: int) -> Figures:
    """Shares of a core while `num` requests stream; measured once all of them do."""
    queue, num_tokens = f"stream-{num}", TOKENS_PER_S * (SECONDS_STREAMED * 4 + num // 32)
    with (
        worker(on, queue, model=f"echo?step_ms={STEP_MS}", max_num_seqs=num) as pid,
        Client(on.url, queue) as client,
    ):
        jobs = client.submit_many(requests(num, max_tokens=num_tokens, ignore_eos=True))
        names = [client._core.keys.job(job.id) for job in jobs]
        wait(lambda: all(_told(on, names)))
        before, told, started_s = _cpu(on, pid), sum(_told(on, names)), time.perf_counter()
        time.sleep(SECONDS_STREAMED)
        taken_s = time.perf_counter() - started_s
        after, told = _cpu(on, pid), sum(_told(on, names)) - told
        for job in jobs:
            job.cancel()
    shares = {f"stream_{num}_{name}_share": (after[name] - before[name]) / taken_s for name in before}
    return {f"stream_{num}_tokens_per_s": told / taken_s, **shares}


def _told(on: Bench, names: Sequence[str]) -> list[int]:
    return [int(found or 0) for found in on.store.send([("HGET", name, "published") for name in names])]


def _cpu(on: Bench, pid: int) -> Figures:
    threads = thread_cpu_s(pid)
    return {"server": on.cpu_s(), "worker": process_cpu_s(pid), "publisher": threads["publisher"]}


# --- depth ---


def depths(on: Bench, num: int) -> Figures:
    """Memory a queued request, and what it costs to read and begin 1,000 of so many."""
    store, keys = on.store, Keys("deep")
    transitions = Transitions(keys)
    store.run(transitions.register("fetcher", {}, 3_600_000))
    figures: Figures = {}
    queued, empty = 0, _used_memory(on)
    with Client(on.url, "deep") as client:
        for depth in sorted({depth for depth in (1_000, 100_000) if depth < num} | {num}):
            while queued < depth:
                size = min(BATCH, depth - queued)
                client.submit_many(requests(size, first=queued))
                queued += size
            figures[f"bytes_per_request_at_{depth}"] = (_used_memory(on) - empty) / depth
            figures[f"fetch_1000_ms_at_{depth}"] = _fetch(store, transitions) * 1000
            client.submit_many(requests(NUM_FETCHED, first=queued + num))  # what was fetched is replaced
    store.client.flushall()
    return figures


def _used_memory(on: Bench) -> int:
    return int(on.store.client.info("memory")["used_memory"])


def _fetch(store: Store, transitions: Transitions) -> float:
    """Seconds to read and begin NUM_FETCHED; they are handed back to the resume lane, where they do not matter."""
    lane, seconds = transitions.keys.lane(Lane.NORMAL), 0.0
    command = ("XREADGROUP", "GROUP", "w", "fetcher", "COUNT", MAX_JOBS_PER_CALL, "STREAMS", lane, ">")
    for _ in range(NUM_FETCHED // MAX_JOBS_PER_CALL):
        started_s = time.perf_counter()
        ((_, entries),) = store.send([command])[0]
        claims = [Delivery(Lane.NORMAL, entry_id.decode(), fields).claim() for entry_id, fields in entries]
        begun = store.run(transitions.begin("fetcher", claims))
        seconds += time.perf_counter() - started_s
        store.run(transitions.release("fetcher", [Held(job.request_id, job.fence) for job in begun]))
    return seconds


# --- report ---


def comparison(figures: Figures, ours: Measured, rival: RivalProcess, rate: float, theirs: Measured) -> dict[str, Any]:
    """A rival's figures; above 1 is better in `ours_over_theirs` for rates, below 1 for times."""
    ratios = {"enqueue_per_s": round(figures["enqueue_per_s"] / rate, 3), **paired_ratios(ours, theirs)}
    return {"enqueue_per_s": rate, **theirs.medians(), "packages": rival.packages, "ours_over_theirs": ratios}


def print_figures(ours: Figures, rivals: Mapping[str, Mapping[str, Any]]) -> None:
    print()
    for name, value in ours.items():
        print(f"{name:<36}{value:>14,.3f}")
    for rival, theirs in rivals.items():
        print(f"\n{rival:<36}{'theirs':>14}{'ours / theirs':>16}")
        for name, ratio in theirs["ours_over_theirs"].items():
            print(f"{name:<36}{theirs[name]:>14,.3f}{ratio:>16,.3f}")
    print()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-requests", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement")
    parser.add_argument("--round-trips", type=int, default=200, help="in each round")
    parser.add_argument("--streams", default="256,1024", help="requests that stream at once; empty: leave it out")
    parser.add_argument("--queued", type=int, default=0, metavar="N", help="measure depths up to N as well")
    parser.add_argument("--rivals", default="", help="out of arq,celery,rq")
    parser.add_argument("--rivals-python", action="append", default=[], metavar="PATH")
    parser.add_argument("--keep", action="store_true", help="write the JSON line to benchmarks/results/")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    names = list(filter(None, args.rivals.split(",")))
    sizes = {"num_rounds": args.rounds, "num": args.num_requests // 4, "num_round_trips": args.round_trips}
    with bench() as on:
        figures = enqueue(on, args.num_requests, num_rounds=args.rounds)
        ours, rivals = contest(on, names, args.rivals_python, **sizes)
        figures |= ours.medians()
        for num in filter(None, args.streams.split(",")):
            figures |= publishing(on, int(num))
            on.store.client.flushall()
        figures |= depths(on, args.queued) if args.queued else {}
    figures = {name: round(value, 4) for name, value in figures.items()}
    compared = {rival.name: comparison(figures, ours, rival, rate, theirs) for rival, rate, theirs in rivals}
    print_figures(figures, compared)
    settings = {
        "num_requests": args.num_requests,
        "num_in_turn": sizes["num"],
        "num_round_trips": args.round_trips,
        "num_rounds": args.rounds,
        "prompt_length": PROMPT_LENGTH,
        "max_tokens": 1,
        "appendfsync": "everysec",
    }
    line = print_json("queue", {**figures, "rivals": compared}, settings)
    if args.keep:
        keep_line("queue_echo_cpu", line)


if __name__ == "__main__":
    main()
