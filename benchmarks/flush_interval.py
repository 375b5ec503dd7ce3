"""What collecting deltas costs and gives: workload A streamed to its readers, with one flush interval after the other.

Each interval has a server and a worker of its own, as `tokenmill bulk run --local` has them, and one client that reads
all answers as they come. Told for each: throughput, the time between two deltas of an answer, and how many tokens a
delta has.

Caveats: server, worker and client share this machine's cores. A delta cannot come more often than the engine steps:
with 64 rows in flight a step of the small model takes about 40 ms here, so intervals below that tell nothing apart.
`--rounds` repeats the whole row of intervals, each time in the opposite order.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tokenmill import AsyncClient
from tokenmill.cli.local import local_worker

from benchmarks.report import keep_line, print_json
from benchmarks.rivals.common import percentile
from benchmarks.workload import Workload, workload

Figures = dict[str, float]


class Answer(NamedTuple):
    """Its number of tokens, and when its deltas came, seconds since the run began."""

    num_tokens: int
    times_s: list[float]


async def ask(client: AsyncClient, text: str, max_tokens: int, started_s: float) -> Answer:
    messages = [{"role": "user", "content": text}]
    job = await client.submit(messages=messages, max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    num_tokens, times_s = 0, list[float]()
    async for delta in job.stream():
        num_tokens += len(delta.token_ids)
        times_s.append(time.perf_counter() - started_s)
    return Answer(num_tokens, times_s)


async def ask_all(url: str, work: Workload) -> list[Answer]:
    async with AsyncClient(url) as client:
        started_s = time.perf_counter()
        ones = zip(work.prompts, work.max_tokens, strict=True)
        return await asyncio.gather(*(ask(client, text, tokens, started_s) for text, tokens in ones))


def figures(answers: Sequence[Answer]) -> Figures:
    gaps_s = [after - before for one in answers for before, after in zip(one.times_s, one.times_s[1:], strict=False)]
    num_tokens = sum(one.num_tokens for one in answers)
    num_deltas = sum(len(one.times_s) for one in answers)
    return {
        "tokens_per_s": round(num_tokens / max(one.times_s[-1] for one in answers), 1),
        "gap_p50_ms": round(1e3 * percentile(gaps_s, 50), 1),
        "gap_p95_ms": round(1e3 * percentile(gaps_s, 95), 1),
        "tokens_per_delta": round(num_tokens / num_deltas, 2),
        "deltas_per_s": round(num_deltas / max(one.times_s[-1] for one in answers), 1),
    }


def measured(model: str, dtype: str, interval_ms: float, work: Workload) -> Figures:
    os.environ["TOKENMILL_ENABLE_PREFIX_CACHING"] = "false"  # neither has a flag of the worker
    os.environ["TOKENMILL_FLUSH_INTERVAL_MS"] = str(interval_ms)
    flags = {"--dtype": dtype, "--max-num-seqs": 64, "--max-num-batched-tokens": 512}
    with (
        TemporaryDirectory(prefix="tokenmill-bench-") as folder,
        local_worker(model, flags, folder=Path(folder)) as worker,
    ):
        worker.wait_ready()
        asyncio.run(ask_all(worker.url, workload(4, scale=0.1)))
        found = figures(asyncio.run(ask_all(worker.url, work)))
    print(f"  {interval_ms:g} ms: {found['tokens_per_s']} tok/s, {found['gap_p50_ms']} ms between deltas", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--intervals", default="10,50,100,200,400", help="milliseconds")
    parser.add_argument("--num-requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="write the JSON line to benchmarks/results/")
    args = parser.parse_args()
    intervals = [float(word) for word in args.intervals.split(",")]
    work = workload(args.num_requests)
    rounds: dict[float, list[Figures]] = {interval: [] for interval in intervals}
    for number in range(args.rounds):
        for interval in intervals[:: 1 if number % 2 == 0 else -1]:
            rounds[interval].append(measured(args.model, args.dtype, interval, work))
    found = [
        {"flush_interval_ms": interval, **{name: median(one[name] for one in own) for name in own[0]}}
        for interval, own in rounds.items()
    ]
    for name in found[0]:
        print(f"{name:<22}" + "".join(f"{one[name]:>12,.1f}" for one in found))
    result = {"by_flush_interval": found, "num_flushed": args.num_requests}
    line = print_json("flush_interval", result, {**vars(args), "prompts": work.source})
    if args.keep:
        keep_line("flush_interval", line)


if __name__ == "__main__":
    main()
