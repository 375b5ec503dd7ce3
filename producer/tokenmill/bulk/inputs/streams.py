"""The bytes of a place, local or remote, decompressed. Knows no rows."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from tokenmill.bulk.inputs.places import Place, import_fsspec, is_url
from tokenmill.bulk.rows import InputError

UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what a truncated or damaged file raises on the way


@contextmanager
def opened(place: Place) -> Iterator[IO[bytes]]:
    """Its bytes from the beginning, for as long as the context lasts. Errors on the way, too, come as InputError."""
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(_open_raw(place.url))
            yield stack.enter_context(_decompressed(raw, place.compression))
        except UNREADABLE as error:
            raise InputError(f"{place.url}: cannot be read: {error}") from error


@contextmanager
def seekable(place: Place) -> Iterator[IO[bytes]]:
    """As `opened`, for formats with an index at their end."""
    if place.compression is not None:
        raise InputError(f"{place.url}: {place.kind} compresses its own pages; unpack the file first")
    with opened(place) as file:
        yield file


def _open_raw(url: str) -> IO[bytes]:
    if not is_url(url):
        return open(url, "rb")  # the caller closes it
    try:
        file: IO[bytes] = import_fsspec().open(url, "rb").open()
    except ImportError as error:
        raise InputError(f"{url}: {error}") from error
    return file


def _decompressed(raw: IO[bytes], compression: str | None) -> IO[bytes]:
    if compression == "gzip":
        return gzip.open(raw)  # type: ignore[return-value]  # a binary stream, whatever its class is called
    if compression == "bz2":
        return bz2.open(raw)
    if compression == "xz":
        return lzma.open(raw)
    if compression == "zstd":
        stream: Any = import_pyarrow("zst files").CompressedInputStream(raw, "zstd")
        return io.BufferedReader(stream)
    return raw


def import_pyarrow(what: str) -> Any:
    """The package, with its `parquet`, `ipc` and `types` loaded."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
        import pyarrow.types
    except ModuleNotFoundError as error:
        raise InputError(f"{what} need pyarrow: pip install 'tokenmill[bulk]'") from error
    return pyarrow
