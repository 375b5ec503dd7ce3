"""Where an input's rows lie: files, folders, globs and URLs become a list of places. Reads no row.

A path is local; `scheme://...` goes to fsspec (s3, gs, memory, http ...), whose driver for the scheme must be
installed; `hf://owner/name` is a dataset on the Hugging Face hub.
"""

import glob
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tokenmill.bulk.rows import InputError
from tokenmill.bulk.spec import InputSpec

Kind = Literal["jsonl", "csv", "tsv", "parquet", "arrow", "hub"]

FORMATS = ("jsonl", "csv", "tsv", "parquet", "arrow", "openai")
_KINDS: dict[str, Kind] = {
    "jsonl": "jsonl",
    "csv": "csv",
    "tsv": "tsv",
    "parquet": "parquet",
    "arrow": "arrow",
    "openai": "jsonl",  # OpenAI Batch: JSON lines of a fixed shape
}
SUFFIXES: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
STDIN = "-"
HUB = "hf://"
HUB_FILES = "hf://datasets/"  # fsspec's own spelling of files on the hub
RUN_FOLDER_SUFFIX = ".tokenmill"  # what a run keeps beside its output; never input

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Place:
    """One file, or one dataset on the hub; `url` is a local path or a URL."""

    url: str
    kind: Kind
    compression: str | None = None


def is_url(source: str) -> bool:
    return _URL.match(source) is not None


def is_hub_dataset(source: str) -> bool:
    return source.startswith(HUB) and not source.startswith(HUB_FILES)


def find_places(wanted: InputSpec, *, exclude: Collection[Path] = ()) -> list[Place]:
    """All places in the order of the paths, each folder's and glob's files sorted. InputError: nothing there.

    `exclude`: local files that folders and globs leave out, such as the run's own output.
    """
    if wanted.format is not None and wanted.format not in FORMATS:
        raise InputError(f"no format {wanted.format!r}; there are {', '.join(FORMATS)}")
    excluded = {path.resolve() for path in exclude}
    return [place for source in wanted.paths for place in _places_of(source, wanted.format, excluded)]


def _places_of(source: str, chosen: str | None, excluded: Collection[Path]) -> Iterator[Place]:
    if source == STDIN:
        raise InputError("stdin can be read once only: a run keeps a copy and reads that")
    if is_hub_dataset(source):
        yield Place(source, "hub")
        return
    found = _remote_files(source) if is_url(source) else _local_files(source)
    if found.is_choice:
        files = _known(found.files, chosen, excluded)
        if not files:
            raise InputError(f"{source}: holds no file that ends in one of {_known_suffixes()}")
        yield from (_place(file, chosen) for file in files)
    else:
        yield from (_place(file, chosen, is_arrow=found.is_saved_dataset) for file in found.files)


@dataclass(frozen=True, slots=True)
class _Found:
    """`is_choice`: they come from a folder or glob, where files of other kinds may lie between them."""

    files: Sequence[str]
    is_choice: bool = False
    is_saved_dataset: bool = False


def _known(files: Sequence[str], chosen: str | None, excluded: Collection[Path]) -> list[str]:
    return [
        file
        for file in sorted(files)
        if not _is_hidden(file)
        and (chosen is not None or _kind_of(file)[0] is not None)
        and (is_url(file) or Path(file).resolve() not in excluded)
    ]


def _is_hidden(file: str) -> bool:
    path = PurePosixPath(file)
    return path.name.startswith(".") or any(part.endswith(RUN_FOLDER_SUFFIX) for part in path.parts[:-1])


# --- local files ---


def _local_files(source: str) -> _Found:
    path = Path(source)
    if path.is_dir():
        saved = _saved_dataset(path)
        return saved if saved is not None else _Found([str(file) for file in path.rglob("*") if file.is_file()], True)
    if path.exists():
        return _Found([source])
    if _GLOB.search(source):
        return _Found([name for name in glob.glob(source, recursive=True) if Path(name).is_file()], True)
    raise InputError(f"{source}: no such file or folder")


def _saved_dataset(folder: Path) -> _Found | None:
    """The files of a dataset that `datasets` wrote by save_to_disk, in its order; None: any other folder."""
    if (folder / "dataset_dict.json").exists():
        splits = _json_of(folder / "dataset_dict.json").get("splits", [])
        if len(splits) != 1:
            names = ", ".join(str(folder / str(split)) for split in splits)
            raise InputError(f"{folder}: a dataset with several splits: name one of {names}")
        return _saved_dataset(folder / str(splits[0]))
    if not (folder / "state.json").exists():
        return None
    files = _json_of(folder / "state.json").get("_data_files")
    return None if files is None else _Found([str(folder / file["filename"]) for file in files], is_saved_dataset=True)


def _json_of(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    return value if isinstance(value, dict) else {}


# --- URLs ---


def _remote_files(source: str) -> _Found:
    fsspec = import_fsspec()
    try:
        system, path = fsspec.core.url_to_fs(source)
        if _GLOB.search(path):
            return _Found([system.unstrip_protocol(name) for name in system.glob(path)], True)
        if system.isdir(path):
            return _Found([system.unstrip_protocol(name) for name in system.find(path)], True)
    except (ImportError, ValueError) as error:  # a driver that is not installed, a scheme that nobody knows
        raise InputError(f"{source}: {error}") from error
    except OSError as error:
        raise InputError(f"{source}: cannot be listed: {error}") from error
    return _Found([source])


def import_fsspec() -> Any:
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise InputError("URLs need fsspec: pip install 'tokenmill[bulk]'") from error
    return fsspec


# --- formats ---


def _place(file: str, chosen: str | None, *, is_arrow: bool = False) -> Place:
    kind, compression = _kind_of(file)
    if is_arrow:
        return Place(file, "arrow")
    if chosen is not None:
        return Place(file, _KINDS[chosen], compression)
    if kind is None:
        name = PurePosixPath(file).name
        raise InputError(
            f"{name}: cannot tell the format by the name; it should end in one of {_known_suffixes()}, or say --format"
        )
    return Place(file, kind, compression)


def _kind_of(file: str) -> tuple[Kind | None, str | None]:
    path = PurePosixPath(file)
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is not None:
        path = path.with_suffix("")
    return SUFFIXES.get(path.suffix.lower()), compression


def _known_suffixes() -> str:
    return ", ".join(SUFFIXES)
