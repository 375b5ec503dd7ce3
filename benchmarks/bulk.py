"""What a bulk run costs: the same rows through the bare engine and through `tokenmill bulk run`, files and all.

Both sides load the same model with the same settings in a process of their own, stay loaded, and take turns. A round of
the bulk side reads the rows from a file, sends them through an embedded server to one worker, and writes, syncs and
orders the output; a round of the bare side has the prompts in memory, and templates and tokenizes them.

Caveats: server, runner, worker and engine share this machine's cores, as they do in `tokenmill bulk run --local`. Rates
count output tokens from the first row read to the report. Few rows make the end of a round weigh much, where the batch
empties; it does so on both sides.
"""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenmill.bulk.execute import execute
from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.progress import SilentView
from tokenmill.bulk.spec import InputSpec, RunSpec
from tokenmill.cli.local import local_worker

from benchmarks.report import Side, alternate, keep_line, paired_ratio, print_json, print_table
from benchmarks.through_queue import bare_engine
from benchmarks.workload import Workload, workload

GOAL = 0.95


@contextmanager
def bulk_run(settings: dict[str, object], work: Workload) -> Iterator[Side]:
    """The worker stays; each round is a run of its own, into a file of its own."""
    flags = {
        "--dtype": settings["dtype"],
        "--max-num-seqs": settings["max_num_seqs"],
        "--max-num-batched-tokens": settings["max_num_batched_tokens"],
    }
    os.environ["TOKENMILL_ENABLE_PREFIX_CACHING"] = str(settings["enable_prefix_caching"])  # no flag of the worker
    with TemporaryDirectory(prefix="tokenmill-bench-") as name:
        folder, rounds = Path(name), count()
        rows = folder / "rows.jsonl"
        asked = zip(work.prompts, work.max_tokens, strict=True)
        rows.write_text("".join(json.dumps({"question": text, "length": num}) + "\n" for text, num in asked))
        with local_worker(str(settings["model"]), flags, folder=folder) as worker:
            worker.wait_ready()
            recipe = Recipe(
                column="question",
                sampling={"temperature": 0.0, "ignore_eos": True},
                parameters={"max_tokens": "length"},
            )

            def run() -> int:
                out = folder / f"out-{next(rounds)}.jsonl"
                spec = RunSpec(input=InputSpec(paths=(str(rows),)), out=str(out), recipe=recipe)
                report = execute(spec, queue_factory=worker.connect_queue, view=SilentView())
                assert report.num_done == len(work.prompts), f"{report.num_failed} rows failed: {report.errors}"
                return report.completion_tokens

            yield Side("bulk run", run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--num-rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="write the JSON line to benchmarks/results/")
    args = parser.parse_args()

    work = workload(args.num_rows)
    # Prefix caching is off: the same prompts come back every round, and a warm cache would hide the prefill.
    settings: dict[str, object] = {
        "model": args.model,
        "dtype": args.dtype,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 512,
        "enable_prefix_caching": False,
    }
    print(f"{args.num_rows} rows of {work.source}, {work.num_output_tokens} output tokens, {args.model}")
    with bare_engine(settings, work) as bare, bulk_run(settings, work) as bulk:
        bare_rates, bulk_rates = alternate([bare, bulk], num_rounds=args.rounds)

    ratio = paired_ratio(bulk_rates, bare_rates)
    print_table([bare_rates, bulk_rates], baseline=bare_rates)
    print(f"goal: {GOAL:.0%} of the bare engine; here {ratio:.1%}")
    figures = {"bare_tok_s": bare_rates.rounds, "bulk_tok_s": bulk_rates.rounds, "ratio": round(ratio, 4)}
    line = print_json("bulk", figures, {**settings, "num_rows": args.num_rows, "prompts": work.source})
    if args.keep:
        keep_line(f"bulk_{args.model}_cpu", line)


if __name__ == "__main__":
    main()
