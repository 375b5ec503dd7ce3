"""Other people's clients, unchanged, each in a process of its own: litellm, langchain-openai, openai for Node.js."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.running import RunningGateway
from tests.support.node import installed

HERE = Path(__file__).parent
TIMEOUT_S = 120
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}  # they fetch nothing, and tell nobody


def answers_of(command: list[str], *, cwd: Path = HERE) -> dict[str, Any]:
    """What the client has printed; it found the same text both ways."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **QUIET}, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert told["whole"]
    assert told["whole"] == told["streamed"]
    assert told["tokens"] == 20
    return told


@pytest.mark.parametrize("client", ["litellm", "langchain"])
def test_a_client_of_pypi_hears_the_same_whole_and_streamed(gateway: RunningGateway, client: str) -> None:
    answers_of([sys.executable, str(HERE / f"client_{client}.py"), gateway.v1])


def test_the_openai_package_of_npm_hears_the_same_whole_and_streamed(gateway: RunningGateway, tmp_path: Path) -> None:
    folder = installed(HERE / "node_client", tmp_path)
    assert answers_of(["node", "client.mjs", gateway.v1], cwd=folder)["refused"] == "model_not_found"
