"""What the queue costs: the same requests through the bare engine and through server, worker process and client.

Both sides load the same model with the same settings in a process of their own, stay loaded, and take turns; the one
whose turn it is not blocks. The bare side's time includes templating and tokenizing, as the queue's does.

Caveats: server, client and engine share this machine's cores, as they do in `tokenmill bulk run --local`. Rates count
useful output tokens only, from the first submission to the last result read.
"""

import argparse
import gc
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenmill import Client
from tokenmill.cli.local import local_worker

from benchmarks.report import RESULTS, Side, alternate, paired_ratio, print_json, print_table
from benchmarks.workload import Workload, workload


def serve_bare_engine(settings: dict[str, object], work: Workload, orders: Connection) -> None:
    """Child process: one whole run of the workload per order, answered with its number of output tokens."""
    from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams

    engine = Engine(EngineConfig(**settings))  # type: ignore[arg-type]  # argparse gives plain values, EngineConfig checks them
    params = [SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True) for tokens in work.max_tokens]
    gc.freeze()  # as the worker does
    orders.send("ready")
    while orders.recv() == "run":
        prompts = [engine.tokenizer.apply_chat_template([{"role": "user", "content": text}]) for text in work.prompts]
        orders.send(sum(len(output.token_ids) for output in engine.generate(prompts, params)))


@contextmanager
def bare_engine(settings: dict[str, object], work: Workload) -> Iterator[Side]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    child = spawn.Process(target=serve_bare_engine, args=(settings, work, theirs), daemon=True)
    child.start()
    ours.recv()

    def run() -> int:
        ours.send("run")
        return int(ours.recv())

    try:
        yield Side("bare engine", run)
    finally:
        ours.send("stop")
        child.join(timeout=10)
        child.kill()


@contextmanager
def through_queue(settings: dict[str, object], work: Workload) -> Iterator[Side]:
    """As `tokenmill bulk run --local` has it: an embedded server and a worker child of its own."""
    flags = {
        "--dtype": settings["dtype"],
        "--max-num-seqs": settings["max_num_seqs"],
        "--max-num-batched-tokens": settings["max_num_batched_tokens"],
    }
    os.environ["TOKENMILL_ENABLE_PREFIX_CACHING"] = str(settings["enable_prefix_caching"])  # no flag of the worker
    with (
        TemporaryDirectory(prefix="tokenmill-bench-") as folder,
        local_worker(str(settings["model"]), flags, folder=Path(folder)) as worker,
        Client(worker.url) as client,
    ):
        worker.wait_ready()

        def run() -> int:
            requests = [
                {
                    "messages": [{"role": "user", "content": text}],
                    "max_tokens": tokens,
                    "temperature": 0.0,
                    "ignore_eos": True,
                }
                for text, tokens in zip(work.prompts, work.max_tokens, strict=True)
            ]
            jobs = client.submit_many(requests)
            return sum(job.result(timeout=600).usage.completion_tokens for job in jobs)

        yield Side("through the queue", run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--num-requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="write the JSON line to benchmarks/results/")
    args = parser.parse_args()

    work = workload(args.num_requests)
    # Prefix caching is off: the same prompts come back every round, and a warm cache would hide the prefill.
    settings: dict[str, object] = {
        "model": args.model,
        "dtype": args.dtype,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 512,
        "enable_prefix_caching": False,
    }
    print(f"{args.num_requests} requests of {work.source}, {work.num_output_tokens} output tokens, {args.model}")
    with bare_engine(settings, work) as bare, through_queue(settings, work) as queued:
        bare_rates, queued_rates = alternate([bare, queued], num_rounds=args.rounds)

    ratio = paired_ratio(queued_rates, bare_rates)
    print_table([bare_rates, queued_rates], baseline=bare_rates)
    figures = {"bare_tok_s": bare_rates.rounds, "queued_tok_s": queued_rates.rounds, "ratio": round(ratio, 4)}
    line = print_json("through_queue", figures, {**settings, "num_requests": args.num_requests, "prompts": work.source})
    if args.keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"through_queue_{args.model}_cpu.json").write_text(line + "\n")


if __name__ == "__main__":
    main()
