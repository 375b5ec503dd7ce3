"""Schemathesis on a running gateway: all that its OpenAPI document allows, and what it does not. Knows no endpoint."""

import subprocess
import sys
from tempfile import TemporaryDirectory

REQUEST_TIMEOUT_S = 20  # of one request: what hangs fails
_COMMAND = "from schemathesis.cli import schemathesis; schemathesis()"


def fuzz(url: str, *, phases: str, num_examples: int, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Asks every operation. Exit code 1: a 5xx, or no answer in time; the output says how to do it again."""
    options = {
        "--phases": phases,
        "--checks": "not_a_server_error",
        "--max-examples": num_examples,
        "--request-timeout": REQUEST_TIMEOUT_S,
        "--max-response-time": REQUEST_TIMEOUT_S,
        "--generation-database": "none",
        "--seed": 1,
        "--warnings": "off",
        "--suppress-health-check": "all",
        "--workers": 1,  # with more, Python 3.11 itself fails: its AST counts recursion wrongly among threads
    }
    typed = [word for option, value in options.items() for word in (option, str(value))]
    command = [sys.executable, "-c", _COMMAND, "run", f"{url}/openapi.json", "--no-color", "--continue-on-failure"]
    with TemporaryDirectory() as folder:  # it keeps a cache where it stands
        return subprocess.run(
            [*command, *typed], cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False
        )
