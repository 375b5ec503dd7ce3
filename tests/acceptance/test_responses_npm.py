"""Responses through the openai package of npm: whole, streamed, in the background, resumed, cancelled."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.fleet import running_fleet
from tests.queue.harness import Bench
from tests.support.doors import open_doors
from tests.support.node import installed

HERE = Path(__file__).parent
TIMEOUT_S = 120


@pytest.mark.slow
def test_the_openai_package_of_npm_follows_a_response_everywhere(bench: Bench, tmp_path: Path) -> None:
    folder = installed(HERE / "node_responses", tmp_path)
    with (
        running_fleet(bench, tmp_path, model="echo") as fleet,
        open_doors(bench.url, bench.keys.queue, tmp_path) as doors,
    ):
        fleet.start_ready()
        command = ["node", "responses.mjs", f"http://127.0.0.1:{doors.open[0].port}/v1"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["whole"]
    assert told["whole"] == told["streamed"] == told["background"]
    assert (told["tokens"], told["resumed"], told["cancelled"]) == (20, True, "cancelled")
