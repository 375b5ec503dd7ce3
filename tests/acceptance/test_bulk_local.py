"""`bulk run --local` whose own worker is killed: another one is started, and the file is as if nothing had happened."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from tests.acceptance.bulk_scene import BulkProcess, run_to_the_end, write_rows
from tests.e2e.commands import descendants
from tests.support.waiting import wait_until

NUM_ROWS = 80
OPTIONS = ("--local", "--model", "echo?step_ms=5", "--column", "question", "--max-tokens", 8, "--max-num-seqs", 4)
SHORT_LEASE = {"TOKENMILL_LEASE_TTL_S": "1"}


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ({"question": f"question {number}"} for number in range(NUM_ROWS)))
    expected = run_to_the_end(rows, tmp_path / "undisturbed.jsonl", *OPTIONS).out.read_bytes()
    run = BulkProcess(rows, tmp_path / "killed.jsonl", *OPTIONS, env=SHORT_LEASE)
    try:
        run.wait_bytes(len(expected) / 4)
        (worker,) = _workers(run.process.pid)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: _workers(run.process.pid) not in ([], [worker]), description="another worker is there")
        run.wait_done()
    finally:
        run.kill()
    assert run.out.read_bytes() == expected


def _workers(pid: int) -> Sequence[int]:
    return [child for child in descendants(pid) if "tokenmill.cli\0worker" in _command_line(child)]


def _command_line(pid: int) -> str:
    path = Path(f"/proc/{pid}/cmdline")
    return path.read_text() if path.exists() else ""
