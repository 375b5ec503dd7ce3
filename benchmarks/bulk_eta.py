"""How soon a bulk run knows when it will end: the time left that it tells, beside the time that was left.

One real run of workload A through `tokenmill bulk run`'s own path (a server and a worker process on this machine), with
all rows in flight at once. Acceptance: at 10 % of the rows the time told is within 15 % of the truth.

Caveats: server, runner and worker share this machine's cores; a neighbour that comes or goes during the run makes its
end another one than anybody could know. The worker is warm: a few rows run before, in a run of their own.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenmill.bulk.execute import execute
from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.progress import SilentView, Tally
from tokenmill.bulk.report import RunReport
from tokenmill.bulk.spec import InputSpec, RunSpec
from tokenmill.cli.local import LocalWorker, local_worker

from benchmarks.report import keep_line, print_json
from benchmarks.workload import Workload, workload

SHARES = (0.1, 0.25, 0.5, 0.75)
GOAL = 0.15  # at the first of them
NUM_WARM_ROWS = 8


@dataclass(slots=True)
class Observer(SilentView):
    """A ProgressView that keeps what it is told, and when."""

    told: list[tuple[float, int, float | None]] = field(default_factory=list)  # time, rows settled, seconds left
    ended_s: float = 0.0

    def update(self, tally: Tally) -> None:
        self.told.append((time.monotonic(), tally.num_settled, tally.eta_s))

    def stop(self, tally: Tally) -> None:
        self.ended_s = time.monotonic()

    def at(self, num_rows: int) -> tuple[float | None, float]:
        """(seconds left as told, as they were) when so many rows were settled."""
        at_s, _, eta_s = next(one for one in self.told if one[1] >= num_rows)
        return eta_s, self.ended_s - at_s


def run(worker: LocalWorker, work: Workload, folder: Path, view: SilentView) -> RunReport:
    """Into `folder`, which is new."""
    folder.mkdir()
    rows = folder / "rows.jsonl"
    asked = zip(work.prompts, work.max_tokens, strict=True)
    rows.write_text("".join(json.dumps({"question": text, "length": num}) + "\n" for text, num in asked))
    sampling = {"temperature": 0.0, "ignore_eos": True}
    recipe = Recipe(column="question", sampling=sampling, parameters={"max_tokens": "length"})
    spec = RunSpec(input=InputSpec(paths=(str(rows),)), out=str(folder / "out.jsonl"), recipe=recipe)
    return execute(spec, queue_factory=worker.connect_queue, view=view)


def figures(observer: Observer, num_rows: int) -> dict[str, float | None]:
    """Errors are shares of the truth; negative: told too short a time."""
    found: dict[str, float | None] = {}
    for share in SHARES:
        told_s, true_s = observer.at(max(1, round(share * num_rows)))
        name = f"at_{share:.0%}".removesuffix("%")
        found[f"{name}_told_s"] = None if told_s is None else round(told_s, 2)
        found[f"{name}_true_s"] = round(true_s, 2)
        found[f"{name}_error"] = None if told_s is None else round(told_s / true_s - 1, 4)
    return found


def print_found(found: dict[str, float | None], shares: Sequence[float]) -> None:
    print(f"{'rows done':<12}{'told':>10}{'true':>10}{'error':>10}")
    for share in shares:
        told_s, true_s, error = (found[f"at_{share * 100:.0f}_{name}"] for name in ("told_s", "true_s", "error"))
        told = "     -    -" if told_s is None or error is None else f"{told_s:>10.1f}{true_s:>10.1f}{error:>+10.1%}"
        print(f"{share:<12.0%}{told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--num-rows", type=int, default=64)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="write the JSON line to benchmarks/results/")
    args = parser.parse_args()
    flags = {"--dtype": args.dtype, "--max-num-seqs": args.max_num_seqs, "--max-num-batched-tokens": 512}
    os.environ["TOKENMILL_ENABLE_PREFIX_CACHING"] = "False"  # no flag of the worker; the warm rows come again
    work, observer = workload(args.num_rows, seed=args.seed), Observer()
    warm = Workload(work.source, work.prompts[:NUM_WARM_ROWS], [8] * min(NUM_WARM_ROWS, args.num_rows))
    with TemporaryDirectory(prefix="tokenmill-bench-") as name:
        folder = Path(name)
        with local_worker(args.model, flags, folder=folder) as worker:
            worker.wait_ready()
            run(worker, warm, folder / "warm", SilentView())
            report = run(worker, work, folder / "run", observer)
    found = figures(observer, args.num_rows)
    print_found(found, SHARES)
    error = found["at_10_error"]
    is_met = error is not None and abs(error) <= GOAL
    print(f"goal: within {GOAL:.0%} at 10 % of the rows; {'met' if is_met else 'missed'}")
    settings = {**vars(args), "prompts": work.source}
    line = print_json("bulk_eta", {**found, "is_met": is_met, "elapsed_s": report.elapsed_s}, settings)
    if args.keep:
        keep_line(f"bulk_eta_{args.model}_cpu", line)


if __name__ == "__main__":
    main()
