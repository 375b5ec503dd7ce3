"""Carries this machine's pip settings into an image build, for the builds of `make images-check` alone. Knows no image.

Usage: python -m tests.packaging.pip_settings FOLDER. Writes FOLDER/pip.conf and prints the `--volume` options that
make it, and the files it names, readable inside the build. Indexes that are folders of this machine are left out.
"""

import ast
import subprocess
import sys
from pathlib import Path

INSIDE = "/mnt/pip"  # apart from the certificate folder, which the build's own packages write to


def machine_settings() -> dict[str, str]:
    """Option -> value, whether it came from a file or from the environment."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    )
    settings = {}
    for line in listing.stdout.splitlines():
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = str(ast.literal_eval(value))
    return settings


def carried(settings: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The settings as they read inside the build, and the host paths to mount: the n-th at INSIDE/n."""
    inside: dict[str, str] = {}
    paths: list[str] = []
    for option, value in settings.items():
        words = [word for word in value.split() if not word.startswith("file:")]
        for position, word in enumerate(words):
            if word.startswith("/") and Path(word).exists():
                paths.append(word)
                words[position] = f"{INSIDE}/{len(paths) - 1}"
        if words:
            inside[option] = " ".join(words)
    return inside, paths


def main(folder: Path) -> None:
    inside, paths = carried(machine_settings())
    conf = folder / "pip.conf"
    conf.write_text("\n".join(["[global]", *(f"{option} = {value}" for option, value in inside.items()), ""]))
    mounts = {str(conf): "/etc/pip.conf"} | {path: f"{INSIDE}/{n}" for n, path in enumerate(paths)}
    sys.stdout.writelines(f"--volume={host}:{target}:ro\n" for host, target in mounts.items())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
