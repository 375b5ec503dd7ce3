"""What the whole way adds to the engine: HTTP, queue and publishing, to the first token of a stream on an idle system.

    make bench-gateway
    python -m benchmarks.gateway --clients 1000 --keep

Measured in turns, A B A B: the bare engine in this process (a prompt in, its first token out), and the same prompt
posted to `tokenmill gateway` with `stream`, until the first text is here; one at a time, on a connection of its own
each. The difference of the rounds' medians is what the way adds: HTTP, the gateway, submitting, the worker's fetch and
claim, the publisher's first flush, following, the event. Chat completions and Responses, side by side. `--clients N`
adds a crowd: that many streams at once through one gateway process, first token and time between chunks, its memory
and its CPU for a chunk.

Caveats: the echo model, so that the engine's share is small and what the way adds stands out. Gateway, worker, server
and clients share this machine's cores, and speak over loopback; with the crowd the cores are full, and the times are of
that.
"""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from tokenmill.lifeline import tied_to_us
from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams

from benchmarks.cpu import process_cpu_s
from benchmarks.http_streams import Streamed, stream
from benchmarks.queue import Bench, bench, wait, worker
from benchmarks.report import keep_line, print_json
from benchmarks.rivals.common import percentile

ROOT = Path(__file__).parents[1]
PROMPT = "Why is the sky blue?"
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
NUM_WARM_UP = 50
CROWD_STEP_MS = 100
GOAL_MS = 15.0  # added, at the median

Figures = dict[str, float]


@contextmanager
def gateway(on: Bench, queue: str) -> Iterator[tuple[int, int]]:
    """Port and pid of a gateway process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "tokenmill.cli", "gateway"]
    command += ["--redis", on.url, "--queue", queue, "--port", str(port)]
    child = subprocess.Popen(tied_to_us(command), cwd=ROOT, env=dict(os.environ))
    try:
        wait(lambda: _answers(port) or child.poll() is not None, timeout_s=60)
        if child.poll() is not None:
            raise RuntimeError("the gateway did not start")
        yield port, child.pid
    finally:
        child.terminate()
        child.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def body(path: str, *, max_tokens: int, prompt: str = PROMPT) -> dict[str, object]:
    common: dict[str, object] = {"temperature": 0, "stream": True}
    if path == RESPONSES:
        return {"input": prompt, "max_output_tokens": max_tokens, **common}
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, **common}


def text_times_s(streamed: Streamed, path: str) -> list[float]:
    """Of the events that bring text."""
    mark = b'"response.output_text.delta"' if path == RESPONSES else b'"content":"'
    return [at for at, (_, data) in zip(streamed.times_s, streamed.events, strict=True) if mark in data]


# --- one at a time ---


def engine_times_ms(engine: Engine, num: int) -> list[float]:
    """The bare engine: a prompt in, its one token out."""
    params = SamplingParams(max_tokens=1, temperature=0.0)
    times_ms = []
    for _ in range(num):
        started_s = time.perf_counter()
        engine.generate([PROMPT], params)
        times_ms.append(1000 * (time.perf_counter() - started_s))
    return times_ms


def way_times_ms(port: int, path: str, num: int) -> list[float]:
    """Through the gateway, one stream after the other."""

    async def main() -> list[float]:
        return [await _first_ms(port, path) for _ in range(num)]

    return asyncio.run(main())


async def _first_ms(port: int, path: str) -> float:
    streamed = await stream(port, path, body(path, max_tokens=4))
    if streamed.status != 200 or not streamed.is_whole:
        raise RuntimeError(f"the gateway answered {streamed.status}")
    return 1000 * text_times_s(streamed, path)[0]


def in_turns(port: int, *, num_rounds: int, num: int) -> Figures:
    """Medians over the rounds; `added` from each round's own difference."""
    engine = Engine(EngineConfig(model="echo"))
    rounds: list[Figures] = []
    for number in range(num_rounds + 1):
        size = num if number else NUM_WARM_UP
        sides = [("engine", engine_times_ms(engine, size))]
        sides += [(name, way_times_ms(port, path, size)) for name, path in (("chat", CHAT), ("responses", RESPONSES))]
        if number:
            rounds.append(_round(dict(sides)))
            print("  round", number, {name: round(value, 2) for name, value in rounds[-1].items()}, flush=True)
    return {name: median(one[name] for one in rounds) for name in rounds[0]}


def _round(sides: dict[str, list[float]]) -> Figures:
    figures = {
        f"{name}_p{percent}_ms": percentile(times, percent) for name, times in sides.items() for percent in (50, 99)
    }
    for name in ("chat", "responses"):
        for percent in (50, 99):
            figures[f"{name}_added_p{percent}_ms"] = figures[f"{name}_p{percent}_ms"] - figures["engine_p50_ms"]
    return figures


# --- a crowd ---


def crowd(port: int, pid: int, num_clients: int, *, num_tokens: int) -> Figures:
    """`num_clients` chats at once."""
    before_s, started_s = process_cpu_s(pid), time.perf_counter()
    streams = asyncio.run(_all(port, num_clients, num_tokens))
    taken_s, cpu_s = time.perf_counter() - started_s, process_cpu_s(pid) - before_s
    times_s = [text_times_s(one, CHAT) for one in streams if one.is_whole and one.status == 200]
    gaps_s = [b - a for times in times_s for a, b in pairwise(times) if b > a]
    num_chunks = sum(map(len, times_s))
    return {
        "failed": num_clients - len(times_s),
        "first_token_p50_ms": 1000 * percentile([times[0] for times in times_s], 50),
        "first_token_p99_ms": 1000 * percentile([times[0] for times in times_s], 99),
        "between_chunks_p50_ms": 1000 * percentile(gaps_s, 50),
        "between_chunks_p99_ms": 1000 * percentile(gaps_s, 99),
        "tokens_per_s": num_clients * num_tokens / taken_s,
        "gateway_us_per_chunk": 1e6 * cpu_s / num_chunks,
        "gateway_cores": cpu_s / taken_s,
        "gateway_rss_mib": rss_mib(pid),
    }


async def _all(port: int, num_clients: int, num_tokens: int) -> Sequence[Streamed]:
    asked = (body(CHAT, max_tokens=num_tokens, prompt=f"request {number}") for number in range(num_clients))
    return await asyncio.gather(*(stream(port, CHAT, one) for one in asked))


def rss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


# --- report ---


def print_table(figures: dict[str, Any]) -> None:
    print(f"\n{'first token':<28}{'p50 ms':>10}{'p99 ms':>10}")
    for name in ("engine", "chat", "responses", "chat_added", "responses_added"):
        print(f"{name:<28}{figures[f'{name}_p50_ms']:>10.2f}{figures[f'{name}_p99_ms']:>10.2f}")
    print(f"goal: added p50 <= {GOAL_MS:g} ms")
    for name, value in figures.get("crowd", {}).items():
        print(f"{name:<28}{value:>10.1f}")
    print()


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: _rounded(value) if isinstance(value, dict) else round(value, 2) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="what the whole way adds to the engine")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=200, help="of each round, one at a time")
    parser.add_argument("--clients", type=int, default=0, help="streams at once, in the end")
    parser.add_argument("--tokens", type=int, default=100, help="of each of these streams")
    parser.add_argument("--keep", action="store_true", help="write the JSON line to benchmarks/results/")
    args = parser.parse_args()
    with bench() as on:
        with worker(on, "gateway"), gateway(on, "gateway") as (port, _):
            figures: dict[str, Any] = dict(in_turns(port, num_rounds=args.rounds, num=args.requests))
        if args.clients:
            model = f"echo?step_ms={CROWD_STEP_MS}"
            with worker(on, "crowd", model=model, max_num_seqs=args.clients), gateway(on, "crowd") as (port, pid):
                figures["crowd"] = crowd(port, pid, args.clients, num_tokens=args.tokens)
    print_table(figures)
    settings = {"rounds": args.rounds, "requests": args.requests, "clients": args.clients, "tokens": args.tokens}
    line = print_json("gateway", _rounded(figures), settings)
    if args.keep:
        keep_line("gateway_echo_cpu", line)


if __name__ == "__main__":
    main()
