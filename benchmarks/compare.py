"""Ours beside a rival, A B A B: each round starts each side's command afresh and takes the last rate that it prints.

    python -m benchmarks.compare offline_openvino \\
        --side "tokenmill=python -m benchmarks.offline throughput" --side "openvino=/path/to/python rival.py MODEL"

A side's command prints JSON lines; the last one with `tokens_per_s` counts, so a script may run its work several times
to warm up. Ratios are the first side's over each other's, round by round; their median is told. With --append, rounds
are added to those kept under the same name, so that a slow rival can be measured a round at a time.

Caveats: processes start cold each round; what a script does before its last line is its own matter. Nothing checks that
both do the same work but the number of output tokens, which must be equal where both tell it.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import RESULTS, Rates, machine, paired_ratio, print_table

ROOT = Path(__file__).parents[1]
RATE = "tokens_per_s"


@dataclass(frozen=True, slots=True)
class Command:
    """One side: what it is called and how it is started."""

    name: str
    words: list[str]
    folder: Path

    @classmethod
    def parse(cls, text: str) -> "Command":
        """`name=words` or `name@folder=words`; the words run there, in the repository by default."""
        label, equals, words = text.partition("=")
        name, _, folder = label.partition("@")
        if not equals or not name or not words:
            raise SystemExit(f"--side takes NAME=COMMAND, not {text!r}")
        return cls(name, shlex.split(words), Path(folder) if folder else ROOT)


def last_rate(output: str) -> dict[str, Any]:
    """The last JSON line that tells a rate. ValueError when there is none."""
    for line in reversed(output.splitlines()):
        if (found := _json_object(line)) and RATE in found:
            return found
    raise ValueError(f"no JSON line with {RATE!r} among the last words: {output[-300:]!r}")


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def run_once(command: Command, *, timeout_s: float) -> dict[str, Any]:
    words = [sys.executable if command.words[0] == "python" else command.words[0], *command.words[1:]]
    done = subprocess.run(words, cwd=command.folder, capture_output=True, text=True, check=False, timeout=timeout_s)
    if done.returncode != 0:
        raise SystemExit(f"{command.name} failed ({done.returncode}): {done.stderr[-1500:]}")
    return last_rate(done.stdout)


def check_same_work(found: Mapping[str, Mapping[str, Any]]) -> None:
    told = {name: line["output_tokens"] for name, line in found.items() if "output_tokens" in line}
    if len(set(told.values())) > 1:
        raise SystemExit(f"the sides did not do the same work: output tokens {told}")


def summary(rates: Sequence[Rates]) -> dict[str, Any]:
    """Medians, and the first side's ratio to each other's: the median of the rounds' own, and all of them."""
    ours = rates[0]
    sides = {side.name: {"median": round(median(side.rounds), 1), "rounds": side.rounds} for side in rates}
    ratios = {side.name: round(paired_ratio(ours, side), 3) for side in rates[1:]}
    each = {side.name: [round(a / b, 3) for a, b in zip(ours.rounds, side.rounds, strict=True)] for side in rates[1:]}
    return {"sides": sides, "ours_over": ratios, "ours_over_each_round": each}


def kept_rounds(path: Path, names: Sequence[str]) -> dict[str, list[float]]:
    """What an earlier call measured of the same sides; empty when nothing was."""
    if not path.is_file():
        return {name: [] for name in names}
    sides = json.loads(path.read_text())["sides"]
    if sorted(sides) != sorted(names):
        raise SystemExit(f"{path.name} holds the sides {sorted(sides)}: other ones cannot be appended")
    return {name: list(sides[name]["rounds"]) for name in names}


def measure(
    commands: Sequence[Command], rounds: Mapping[str, list[float]], *, num_rounds: int, timeout_s: float
) -> Any:
    """Adds to `rounds`; returns the last line of each side."""
    lines: dict[str, dict[str, Any]] = {}
    for number in range(num_rounds):
        for command in commands:
            lines[command.name] = found = run_once(command, timeout_s=timeout_s)
            rounds[command.name].append(float(found[RATE]))
            print(f"  round {number + 1}  {command.name:<24}{found[RATE]:>10.1f} tok/s", flush=True)
        check_same_work(lines)
    return {name: {key: value for key, value in line.items() if key != "machine"} for name, line in lines.items()}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the results are kept as benchmarks/results/NAME.json")
    parser.add_argument("--side", action="append", default=[], required=True, metavar="NAME=COMMAND")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--append", action="store_true", help="add rounds to the results kept under this name")
    parser.add_argument("--no-keep", action="store_true", help="print only")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one run of one side")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    commands = [Command.parse(text) for text in args.side]
    names, path = [command.name for command in commands], RESULTS / f"{args.name}.json"
    rounds = kept_rounds(path, names) if args.append else {name: [] for name in names}
    last_lines = measure(commands, rounds, num_rounds=args.rounds, timeout_s=args.timeout)
    rates = [Rates(name, rounds[name]) for name in names]
    print_table(rates, baseline=rates[0])
    result = {"benchmark": args.name, **summary(rates), "last_lines": last_lines, "machine": machine()}
    print(json.dumps(result), flush=True)
    if not args.no_keep:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
