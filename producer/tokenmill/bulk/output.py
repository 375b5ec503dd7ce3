"""The output file of a run and the folder beside it: locked, appended, synced, resumed. Knows no queue.

`out.jsonl` holds one JSON object per finished row and is the only truth about what is done. `out.jsonl.tokenmill/`
beside it holds the lock, the manifest (what made this file) and scratch. `out.errors.jsonl` holds the last run's
failed rows; they are not in `out.jsonl`, so the next run tries them again.
"""

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.rows import JSON, Fields

MANIFEST_VERSION = 1
COPY_BUFFER_BYTES = 1 << 20


class OutputError(Exception):
    """The output file cannot be used for this run; the message says why and what to do."""


class OutputLockedError(OutputError):
    """Another run is writing this file; that passes."""


class DoneRow(NamedTuple):
    start: int  # byte offset of its line
    row_hash: str


_LINE = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def encode_line(value: Fields) -> bytes:
    return _LINE.encode(value).encode() + b"\n"


def folder_of(path: Path) -> Path:
    """What belongs to an output file and is no row: the lock, the manifest, reports, scratch."""
    return path.with_name(path.name + ".tokenmill")


def errors_of(path: Path) -> Path:
    """The errors file of an output file."""
    return path.with_suffix(".errors" + path.suffix)


def scratch_folder(path: Path, name: str) -> Path:
    """An empty folder for what lives no longer than the run; what a killed run left there is removed."""
    folder = folder_of(path) / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


class OutputFile:
    """A run's output, open for appending; a context manager. A second run on the same file is refused."""

    def __init__(self, out: Path, recipe: Recipe, *, path: Path | None = None, errors_path: Path | None = None) -> None:
        """`path` and `errors_path`: the rows' own files, when they are not `out` and the one beside it.

        OutputError: locked, not ours, made by another recipe, or not writable.
        """
        self._out = out
        self.path = path = path or out
        self.folder = folder_of(out)
        self.errors_path = errors_path or errors_of(path)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._acquire_lock()
            manifest = self._check_manifest(recipe)
            self.run_id = str(manifest["run"])
            self.created = int(str(manifest.get("created") or 0))  # Unix seconds
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._end = self._truncate_torn_line()
            self.errors_path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
        self._errors: int | None = None
        self._errors_end = 0
        self._num_unsynced = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sync()
        if self._errors is not None:
            os.close(self._errors)
        os.close(self._file)
        os.close(self._lock)  # last: it frees the lock

    @property
    def num_unsynced(self) -> int:
        """Rows written since the last sync: what a power cut could cost."""
        return self._num_unsynced

    def done_rows(self) -> Iterator[DoneRow]:
        """Every finished row, in the order of the file."""
        start = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield DoneRow(start, self._row_hash(number, line))
                start += len(line)

    def append(self, row: Fields) -> int:
        """Writes one finished row in one call, so that it is readable at once; answers where its line starts."""
        start = self._end
        line = encode_line(row)
        try:
            _write_all(self._file, line, start)
        except OSError:
            os.ftruncate(self._file, start)  # a full disk takes a part of a line: whoever reads the file sees none
            raise
        self._end += len(line)
        self._num_unsynced += 1
        return start

    def append_error(self, row: Fields) -> None:
        if self._errors is None:
            self._errors = os.open(self.errors_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        line = encode_line(row)
        _write_all(self._errors, line, self._errors_end)
        self._errors_end += len(line)

    def sync(self) -> None:
        """After this, every row written so far survives a power cut."""
        if self._num_unsynced:
            os.fsync(self._file)
            self._num_unsynced = 0

    def reorder(self, starts: Iterable[int]) -> None:
        """Rewrites the file with its lines in this order; readers see the old file or the new one, never a mixture."""
        target = self.folder / "ordered.jsonl"
        try:
            self._copy_lines(starts, target)
        except OSError:
            target.unlink(missing_ok=True)  # a disk too full for a second copy; the next run orders the rows
            raise
        os.replace(target, self.path)
        os.close(self._file)
        self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    def note_run(self, spec: Fields, inputs: Mapping[str, Fields]) -> bool:
        """Writes down what this run does and with which input; True when an earlier one had other input there."""
        manifest = self._read_manifest() or {}
        earlier = manifest.get("inputs")
        known = earlier if isinstance(earlier, dict) else {}
        self._replace_manifest({**manifest, "spec": spec, "inputs": dict(inputs)})
        return any(path in known and known[path] != now for path, now in inputs.items())

    def write_beside(self, name: str, text: str) -> Path:
        """A file in the run's folder, whole or not at all."""
        target, draft = self.folder / name, self.folder / f"{name}.new"
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, target)
        return target

    def _copy_lines(self, starts: Iterable[int], target: Path) -> None:
        with self.path.open("rb") as source, target.open("wb", buffering=COPY_BUFFER_BYTES) as ordered:
            for start in starts:
                source.seek(start)
                ordered.write(source.readline())
            ordered.flush()
            os.fsync(ordered.fileno())

    def _acquire_lock(self) -> int:
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode() or "unknown"
            os.close(lock)
            raise OutputLockedError(f"{self.path} is being written by another run (process {holder})") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        return lock

    def _check_manifest(self, recipe: Recipe) -> Fields:
        """The earlier run's when this one continues it, else a new one."""
        manifest = self._read_manifest()
        is_there = self.path.exists()
        if not is_there and self._out.exists():  # it is written at the end, and would take that one's place
            raise OutputError(f"{self._out} is there already, from elsewhere or in another form: choose another --out")
        if not is_there or (manifest is None and self.path.stat().st_size == 0):
            return self._write_manifest(recipe)
        if manifest is None:
            raise OutputError(f"{self.path} is there already and no run wrote it: choose another --out or move it away")
        earlier = manifest.get("recipe")
        changes = recipe.differences(earlier if isinstance(earlier, dict) else {})
        if not changes:
            return manifest
        if self.path.stat().st_size == 0:
            return self._write_manifest(recipe)
        raise OutputError(
            f"{self.path} was made by a run with other settings ({'; '.join(changes)}): "
            "repeat those, choose another --out, or move the file away"
        )

    def _read_manifest(self) -> Fields | None:
        try:
            manifest: JSON = json.loads((self.folder / "manifest.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        is_ours = isinstance(manifest, dict) and manifest.get("version") == MANIFEST_VERSION and "run" in manifest
        return manifest if isinstance(manifest, dict) and is_ours else None

    def _write_manifest(self, recipe: Recipe) -> Fields:
        """A new run id per output file: two people with the same dataset on one queue do not share requests."""
        manifest: Fields = {
            "version": MANIFEST_VERSION,
            "run": uuid.uuid4().hex[:12],
            "created": int(time.time()),
            "recipe": recipe.describe(),
        }
        self._replace_manifest(manifest)
        return manifest

    def _replace_manifest(self, manifest: Fields) -> None:
        target, draft = self.folder / "manifest.json", self.folder / "manifest.json.new"
        with draft.open("wb") as file:
            file.write(encode_line(manifest))
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)

    def _truncate_torn_line(self) -> int:
        """A killed run may leave half a line at the end; a row counts once its newline is there."""
        end = _end_of_last_line(self._file)
        os.ftruncate(self._file, end)
        return end

    def _row_hash(self, number: int, line: bytes) -> str:
        try:
            return str(json.loads(line)["row_hash"])
        except (ValueError, TypeError, KeyError):
            raise OutputError(f"{self.path}, line {number}: no row of a run: mend or remove this line") from None


def _write_all(file: int, data: bytes, start: int) -> None:
    while data:  # a nearly full disk takes a part first and refuses the rest at the next call
        written = os.pwrite(file, data, start)
        data, start = data[written:], start + written


def _end_of_last_line(file: int, *, block_bytes: int = 1 << 16) -> int:
    """Offset after the last newline, found from the end; 0 when there is none."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - block_bytes)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
