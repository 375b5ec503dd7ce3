"""`bulk stop` when nobody executes the run: what its dead worker had in flight is cancelled, too."""

import json
from pathlib import Path

import pytest
from tokenmill import Client
from tokenmill.bulk.jobs.board import RunBoard

from tests.e2e.commands import num_lines, started, tokenmill_here
from tests.support.servers import running_server
from tests.support.waiting import wait_until


@pytest.mark.slow
def test_what_a_killed_bulk_worker_had_in_flight_ends_with_its_run(tmp_path: Path) -> None:
    questions, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    questions.write_text("".join(json.dumps({"question": f"question {n}"}) + "\n" for n in range(50)))
    options = ("--column", "question", "--max-tokens", 2_000, "--window", 8)
    with running_server() as server, Client(server.tcp_url) as client:
        here = ("--redis", server.tcp_url)
        with (
            started("worker", "--model", "echo?step_ms=20", "--max-num-seqs", 4, *here),
            started("bulk", "worker", "--lease", "1s", *here) as killed,
        ):
            run_id = tokenmill_here("bulk", "submit", questions, "--out", out, *options, *here).stdout.strip()
            wait_until(lambda: client.statistics().in_flight >= 4, description="rows are in flight", timeout=30)
            killed.kill()
            killed.wait()
            with RunBoard(server.tcp_url) as board:
                wait_until(lambda: board.status(run_id).state == "lost", description="its lease has run out")
            stopped = tokenmill_here("bulk", "stop", out, *here)
            assert stopped.stdout.strip() == f"{run_id} stops, 8 requests cancelled"
            wait_until(lambda: client.statistics().in_flight == 0, description="the worker has dropped them")
            assert client.statistics().depth == 0
    assert num_lines(out) == 0
