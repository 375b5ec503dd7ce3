"""A rival's script as a contender: a child process that carries out orders. Knows no queue."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

ROOT = Path(__file__).parents[2]


class RivalProcess:
    """The order of orders is that of rivals/common.py: `enqueue` first, once."""

    def __init__(self, name: str, child: "subprocess.Popen[str]", log: Any) -> None:
        self.name = name
        self._child = child
        self._log = log
        self.packages: dict[str, str] = self._answer()

    def enqueue(self, num: int) -> float:
        """Jobs a second."""
        return float(self._ask("enqueue", num))

    def round_trips(self, num: int) -> list[float]:
        return list(self._ask("round_trips", num))

    def end_to_end(self, num: int) -> dict[str, float]:
        return {"end_to_end_per_s": self._ask("end_to_end", num)}

    def _ask(self, order: str, num: int) -> Any:
        assert self._child.stdin is not None
        print(order, num, file=self._child.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"{self.name} failed: {self._log.read()[-800:]}")
        return json.loads(line)


@contextmanager
def rival_process(name: str, interpreters: Sequence[str], url: str) -> Iterator[RivalProcess]:
    """Run by the first of the interpreters that has the rival installed."""
    command = [find_interpreter(name, interpreters), "-m", f"benchmarks.rivals.{name}_echo", "--redis", url]
    with TemporaryFile("w+") as log:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        child = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload]  # as documented
        try:
            yield RivalProcess(name, child, log)
        finally:
            child.stdin.close()  # the end of its orders
            child.wait(30)


def find_interpreter(package: str, interpreters: Sequence[str]) -> str:
    for interpreter in interpreters:
        if subprocess.run([interpreter, "-c", f"import {package}"], capture_output=True, check=False).returncode == 0:
            return interpreter
    raise SystemExit(f"no interpreter given by --rivals-python has {package}; benchmarks/queue.py says how to make one")
