"""Files that were uploaded, and those that batches wrote: content and a small record each, below one folder.

Every gateway process that sees the folder sees the same files. Knows no HTTP; a file's own name is never a path.
"""

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from tokenmill.gateway.documents import Page, is_id, new_id, page_of, read_record, sync_folder, write_record

ID_PREFIX = "file-"
FLUSH_BYTES = 1 << 20  # of an upload, held in memory before they are written
ABANDONED_S = 3_600  # an upload that has not grown for so long was that of a gateway which died

Purpose = Literal["batch", "batch_output"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """`path`: of the content, relative to the folder. Times: Unix seconds; `expires_at` None: kept until deleted."""

    file_id: str
    owner: str
    filename: str
    purpose: Purpose
    num_bytes: int
    created_at: int
    path: str
    expires_at: int | None = None

    def shown(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.file_id,
            "object": "file",
            "bytes": self.num_bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class Draft:
    """An upload on its way to disk. `write` keeps what comes until `is_due`; `flush` may wait for the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_bytes = 0
        self._pending: list[bytes] = []
        self._num_pending = 0
        self._file: BinaryIO = path.open("wb")

    @property
    def is_due(self) -> bool:
        return self._num_pending >= FLUSH_BYTES

    def write(self, data: bytes) -> None:
        self._pending.append(data)
        self._num_pending += len(data)
        self.num_bytes += len(data)

    def flush(self) -> None:
        self._file.writelines(self._pending)
        self._pending, self._num_pending = [], 0

    def finish(self) -> None:
        """All of it is on disk when this returns."""
        self.flush()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Leaves nothing; after `finish` and a move there is nothing to leave."""
        self._pending = []
        self._file.close()
        self.path.unlink(missing_ok=True)


class FileShelf:
    """All files below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder = root / "openai" / "files"
        self._folder.mkdir(parents=True, exist_ok=True)

    def draft(self) -> Draft:
        return Draft(self._folder / f"{new_id('draft-')}.part")

    def keep(
        self, draft: Draft, *, filename: str, purpose: Purpose, owner: str, expires_after_s: int | None = None
    ) -> StoredFile:
        """The upload as a file. The record comes last: a file without one was never there."""
        draft.finish()
        file_id = new_id(ID_PREFIX)
        path = self._folder / f"{file_id}.jsonl"
        os.replace(draft.path, path)
        return self.adopt(
            file_id, path, filename=filename, purpose=purpose, owner=owner, expires_after_s=expires_after_s
        )

    def adopt(
        self,
        file_id: str,
        path: Path,
        *,
        filename: str,
        purpose: Purpose,
        owner: str,
        expires_after_s: int | None = None,
    ) -> StoredFile:
        """Makes content that lies below the folder already a file; again, for the same id, the same."""
        now = int(time.time())
        stored = StoredFile(
            file_id=file_id,
            owner=owner,
            filename=filename,
            purpose=purpose,
            num_bytes=path.stat().st_size,
            created_at=now,
            path=str(path.relative_to(self.root)),
            expires_at=None if expires_after_s is None else now + expires_after_s,
        )
        write_record(self._record(file_id), asdict(stored))
        return stored

    def find(self, file_id: str, owner: str) -> StoredFile | None:
        """None also for a file of somebody else, and for one whose time is over, which is removed."""
        if not is_id(file_id, ID_PREFIX) or (value := read_record(self._record(file_id))) is None:
            return None
        stored = StoredFile(**value)
        if stored.expires_at is not None and stored.expires_at <= time.time():
            self.delete(stored)
            return None
        return stored if stored.owner == owner else None

    def page(
        self, owner: str, *, purpose: str | None, after: str | None, limit: int, is_newest_first: bool
    ) -> Page[StoredFile]:
        def find(file_id: str) -> StoredFile | None:
            stored = self.find(file_id, owner)
            return stored if stored is not None and purpose in (None, stored.purpose) else None

        ids = (path.stem for path in self._folder.glob(f"{ID_PREFIX}*.json"))
        return page_of(ids, find, after=after, limit=limit, is_newest_first=is_newest_first)

    def content(self, stored: StoredFile) -> Path:
        return self.root / stored.path

    def delete(self, stored: StoredFile) -> None:
        self._record(stored.file_id).unlink(missing_ok=True)
        self.content(stored).unlink(missing_ok=True)
        sync_folder(self._folder)

    def sweep(self) -> None:
        """Removes uploads of gateways that died. Another gateway may do so, too."""
        for path in self._folder.glob("draft-*.part"):
            try:
                if time.time() - path.stat().st_mtime > ABANDONED_S:
                    path.unlink()
            except FileNotFoundError:
                continue

    def _record(self, file_id: str) -> Path:
        return self._folder / f"{file_id}.json"
