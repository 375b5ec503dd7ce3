"""Which rows are done and where, and how often a content was seen. On disk, so that memory stays flat at any size.

A scratch index, built anew by every run from the output file: that file is the truth, this one is thrown away. So
nothing here is ever synced, and a crash costs nothing.
"""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

CACHE_KIB = 16_384  # all that the index may hold in memory; the rest is the operating system's page cache

_SCHEMA = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA cache_size = -{CACHE_KIB};
CREATE TABLE done (row_hash TEXT PRIMARY KEY, start INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE seen (content BLOB PRIMARY KEY, times INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE input (place INTEGER PRIMARY KEY, row_hash TEXT NOT NULL UNIQUE);
"""


@contextmanager
def opened_ledger(folder: Path) -> Iterator["Ledger"]:
    """A ledger in `folder`, removed at the end. OSError: it cannot be written, for which SQLite has its own words."""
    try:
        with closing(Ledger(folder / "ledger.sqlite")) as ledger:
            yield ledger
    except sqlite3.Error as error:
        raise OSError(errno.EIO, str(error), str(folder)) from error


class Ledger:
    """Rows by `row_hash`; `start` is the offset in bytes of a row's line in the output file."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._path = path
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.executescript(_SCHEMA)
        self._database.execute("BEGIN")  # never committed: one transaction, no file work per row

    def close(self) -> None:
        self._database.close()
        self._path.unlink(missing_ok=True)

    def see(self, content: bytes) -> int:
        """Counts a content hash; answers how often it was seen before: the row's occurrence number."""
        upsert = "INSERT INTO seen VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times - 1"
        (before,) = self._database.execute(upsert, (content,)).fetchone()
        return int(before)

    def place(self, place: int, row_hash: str) -> None:
        """Notes that `row_hash` is the input's row number `place`."""
        self._database.execute("INSERT INTO input VALUES (?, ?)", (place, row_hash))

    def mark_done(self, row_hash: str, start: int) -> bool:
        """False when it was done before: then `start` is a second line of the same row."""
        cursor = self._database.execute("INSERT OR IGNORE INTO done VALUES (?, ?)", (row_hash, start))
        return cursor.rowcount == 1

    def is_done(self, row_hash: str) -> bool:
        return self._database.execute("SELECT 1 FROM done WHERE row_hash = ?", (row_hash,)).fetchone() is not None

    def starts_in_input_order(self) -> Iterator[int]:
        """Starts of all lines: first the rows of the input in its order, then those it no longer holds."""
        kept = "SELECT start FROM input JOIN done USING (row_hash) ORDER BY place"
        others = "SELECT start FROM done WHERE row_hash NOT IN (SELECT row_hash FROM input) ORDER BY start"
        for query in (kept, others):
            yield from (start for (start,) in self._database.execute(query))
