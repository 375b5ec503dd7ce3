"""Responses through the openai package of npm: whole, streamed, in the background, resumed, cancelled."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.fleet import running_fleet
from tests.queue.harness import Bench
from tests.support.doors import open_doors

HERE = Path(__file__).parent
TIMEOUT_S = 120


@pytest.mark.slow
def test_the_openai_package_of_npm_follows_a_response_everywhere(bench: Bench, tmp_path: Path) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("the openai package of npm was not tried: node and npm (20 or newer) are not installed here")
    folder = tmp_path / "client"
    shutil.copytree(HERE / "node_responses", folder, ignore=shutil.ignore_patterns("node_modules"))
    install = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]
    subprocess.run(install, cwd=folder, check=True, capture_output=True, timeout=TIMEOUT_S)
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
