"""Which files a run may touch on this machine, and what a run is called. Knows no rq and no queue.

With a folder (`--files DIR`, shared by those who submit and those who work) a run's paths are relative to it, and none
leaves it. Without one they are absolute, and both sides must see the same files under the same names.
"""

import glob
import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path

from tokenmill.bulk.inputs.places import STDIN, is_url
from tokenmill.bulk.spec import RunSpec

MAX_STEM_CHARS = 40
HASH_DIGITS = 8


class PlaceError(ValueError):
    """A path that this machine cannot or must not use; the message says which and why."""


def run_id_of(out: str) -> str:
    """One output file, one run: readable by the file's name, unique by its path. Letters, digits, - and _ alone."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(out).name.split(".")[0]).strip("-")[:MAX_STEM_CHARS] or "run"
    return f"{stem}-{hashlib.sha256(out.encode()).hexdigest()[:HASH_DIGITS]}"


def portable(spec: RunSpec, files: Path | None) -> RunSpec:
    """The spec as it is sent: paths relative to `files`, or absolute where there is no such folder."""
    paths = tuple(_portable_path(path, files) for path in spec.input.paths)
    return replace(spec, input=replace(spec.input, paths=paths), out=_portable_path(spec.out, files))


def local(spec: RunSpec, files: Path | None) -> RunSpec:
    """The spec as it is executed here. PlaceError: a path leaves `files`, or needs it."""
    paths = tuple(_local_path(path, files) for path in spec.input.paths)
    return replace(spec, input=replace(spec.input, paths=paths), out=_local_path(spec.out, files))


def _portable_path(path: str, files: Path | None) -> str:
    if path == STDIN:
        raise PlaceError(
            "bulk workers cannot read this stdin: write it to a file that they see (cat > rows.jsonl) and submit that, "
            "or let `tokenmill bulk run -` read it here"
        )
    if is_url(path):
        if files is not None:
            raise PlaceError(f"{path} is not below --files {files}")
        return path
    if files is None:
        return os.path.abspath(path)
    root = files.resolve()
    return str(_below(root, Path(os.path.abspath(path)), files).relative_to(root))


def _local_path(path: str, files: Path | None) -> str:
    if files is None:
        if not is_url(path) and not Path(path).is_absolute():
            raise PlaceError(f"{path} is relative to a shared folder: start this bulk worker with --files DIR")
        return path
    if is_url(path) or Path(path).is_absolute():
        raise PlaceError(f"{path} is not below --files: this bulk worker touches nothing else; submit with --files too")
    root = files.resolve()
    target = _below(root, root / path, files)
    for match in glob.iglob(str(target), recursive=True):
        for file in (Path(match), *Path(match).rglob("*")):  # a folder is read with all that is in it
            _below(root, file, files)
    return str(target)


def _below(root: Path, path: Path, files: Path) -> Path:
    """The path without links and dots, if it lies below `root`."""
    target = path.resolve()
    if not target.is_relative_to(root):
        raise PlaceError(f"{path} leaves --files {files}")
    return target
