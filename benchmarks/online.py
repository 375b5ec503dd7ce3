"""Through the queue, at rates that do not wait for the answers: requests arrive by a Poisson process.

Server, worker child and client as `tokenmill bulk run --local` has them. For each rate: throughput, time to first
token (from the moment the request was due, so a late client counts against us), time per output token after the first,
and time to the last, as p50, p95 and p99.

Caveats: server, worker and client share this machine's cores. Deltas are coalesced over about 50 ms, so the first one
may bring several tokens; time per output token is that of the whole answer after its first delta. A rate above what
the worker can do shows as a time to first token that grows with the length of the run.
"""

import argparse
import asyncio
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tokenmill import AsyncClient
from tokenmill.cli.local import local_worker

from benchmarks.report import keep_line, print_json
from benchmarks.rivals.common import percentile
from benchmarks.workload import Workload, workload

PERCENTS = (50, 95, 99)


class Served(NamedTuple):
    """One request's times, seconds since it was due."""

    num_tokens: int
    first_s: float
    num_first_tokens: int
    last_s: float

    @property
    def per_token_s(self) -> float | None:
        """None for an answer that came in one delta."""
        rest = self.num_tokens - self.num_first_tokens
        return (self.last_s - self.first_s) / rest if rest else None


def arrivals(num: int, rate: float, *, seed: int) -> list[float]:
    """Seconds after the start."""
    rng, now_s, times_s = random.Random(seed), 0.0, []
    for _ in range(num):
        now_s += rng.expovariate(rate)
        times_s.append(now_s)
    return times_s


async def serve_one(client: AsyncClient, text: str, max_tokens: int, *, due_s: float) -> Served:
    await asyncio.sleep(due_s - time.perf_counter())
    messages = [{"role": "user", "content": text}]
    job = await client.submit(messages=messages, max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    first_s, num_first, num_tokens = 0.0, 0, 0
    async for delta in job.stream():
        if num_tokens == 0:
            first_s, num_first = time.perf_counter() - due_s, len(delta.token_ids)
        num_tokens += len(delta.token_ids)
    return Served(num_tokens, first_s, num_first, time.perf_counter() - due_s)


async def serve(url: str, work: Workload, rate: float, *, seed: int) -> tuple[list[Served], float]:
    """All requests at their times; and the seconds from the first arrival to the last token."""
    due = arrivals(len(work.prompts), rate, seed=seed)
    async with AsyncClient(url) as client:
        started_s = time.perf_counter()
        ones = zip(work.prompts, work.max_tokens, due, strict=True)
        served = await asyncio.gather(
            *(serve_one(client, text, tokens, due_s=started_s + due_s) for text, tokens, due_s in ones)
        )
        return served, time.perf_counter() - started_s - due[0]


def figures(served: Sequence[Served], taken_s: float, rate: float) -> dict[str, float]:
    per_token = [one.per_token_s for one in served]
    times = {
        "first_token": [one.first_s for one in served],
        "per_token": [value for value in per_token if value is not None],
        "last_token": [one.last_s for one in served],
    }
    found = {
        f"{name}_p{percent}_ms": round(percentile(values, percent) * 1e3, 2)
        for name, values in times.items()
        for percent in PERCENTS
    }
    tokens_per_s = sum(one.num_tokens for one in served) / taken_s
    return {"rate": rate, "num_requests": len(served), "tokens_per_s": round(tokens_per_s, 1), **found}


def print_figures(found: Sequence[dict[str, float]]) -> None:
    for name in found[0]:
        print(f"{name:<22}" + "".join(f"{one[name]:>12,.1f}" for one in found))
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rates", default="0.5,1,2,4", help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of arrivals for each rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="write the JSON line to benchmarks/results/")
    args = parser.parse_args()
    flags = {"--dtype": args.dtype, "--max-num-seqs": 64, "--max-num-batched-tokens": 512}
    os.environ["TOKENMILL_ENABLE_PREFIX_CACHING"] = "false"  # no flag of the worker: the same questions come again
    found: list[dict[str, float]] = []
    with (
        TemporaryDirectory(prefix="tokenmill-bench-") as folder,
        local_worker(args.model, flags, folder=Path(folder)) as worker,
    ):
        worker.wait_ready()
        asyncio.run(serve(worker.url, workload(4, scale=0.1), 100.0, seed=args.seed))
        for rate in map(float, args.rates.split(",")):
            work = workload(max(4, round(rate * args.seconds)), seed=args.seed)
            served, taken_s = asyncio.run(serve(worker.url, work, rate, seed=args.seed))
            found.append(figures(served, taken_s, rate))
            print(f"  {rate:g} requests a second: {found[-1]['tokens_per_s']:.1f} tok/s", flush=True)
    print_figures(found)
    line = print_json("online", {"rates": found}, {**flags, "model": args.model, "seconds": args.seconds})
    if args.keep:
        keep_line("online", line)


if __name__ == "__main__":
    main()
