"""From a fresh process to the first token: with everything cached, and the first time ever.

The first time ever runs with a home folder of its own, which is empty: the checkpoint is converted and the C++ library
built. A child process measures itself from its first line; the interpreter's own start comes on top in `process_s`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.engines import add_engine_arguments, engine_settings
from benchmarks.report import keep_line, print_json

ROOT = Path(__file__).parents[2]
CHILD = "--measure-this-process"


def measure(settings: dict[str, object], home: str | None = None) -> dict[str, float]:
    """One child; `home` None: the user's own caches."""
    own = {} if home is None else {"HOME": home, "XDG_CACHE_HOME": f"{home}/.cache"}
    command = [sys.executable, "-m", "benchmarks.offline.start", CHILD, json.dumps(settings)]
    started_s = time.perf_counter()
    run = subprocess.run(command, cwd=ROOT, env=os.environ | own, stdout=subprocess.PIPE, text=True, check=True)
    process_s = time.perf_counter() - started_s
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return {**found, "process_s": round(process_s, 2)}


def measure_this_process(settings: dict[str, Any]) -> None:
    started_s = time.perf_counter()
    from benchmarks.engines import load_engine, run_steps

    engine = load_engine(settings)
    loaded_s = time.perf_counter() - started_s
    run_steps(engine, [engine.tokenizer.encode("Why is the sky blue?")], [1])
    first_token_s = time.perf_counter() - started_s
    print(json.dumps({"loaded_s": round(loaded_s, 2), "first_token_s": round(first_token_s, 2)}))


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == CHILD:
        measure_this_process(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_arguments(parser)
    parser.add_argument("--keep", action="store_true", help="write the JSON line to benchmarks/results/")
    args = parser.parse_args()
    settings = engine_settings(args)
    with TemporaryDirectory(prefix="tokenmill-bench-") as home:
        first = measure(settings, home)
    figures = {"first_ever": first, "warm": [measure(settings) for _ in range(2)][-1]}
    for name, found in figures.items():
        print(f"{name:<12}" + "".join(f"{key:>16} {value:.2f}" for key, value in found.items()))
    line = print_json("offline_start", figures, settings)
    if args.keep:
        keep_line("offline_start", line)


if __name__ == "__main__":
    main()
