"""A Node.js program of ours with its packages installed, for tests of clients in another language."""

import shutil
import subprocess
from pathlib import Path

import pytest

INSTALL = ("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent")
TIMEOUT_S = 120.0


def installed(program: Path, folder: Path) -> Path:
    """A copy of `program` (with its package.json) below `folder`. Without Node.js: a skip, with the reason."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip(f"{program.name} was not run: node and npm (20 or newer) are not installed here")
    copy = shutil.copytree(program, folder / program.name, ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run(INSTALL, cwd=copy, check=True, capture_output=True, timeout=TIMEOUT_S)
    return copy
