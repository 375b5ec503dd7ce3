"""Small JSON records on disk that a crash leaves whole, and ids that sort by time. Knows no HTTP and no OpenAI."""

import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from tokenmill.bulk.outputs.replacing import replacing

_TIME_DIGITS, _RANDOM_DIGITS = 12, 20  # of an id: milliseconds, then 80 bits that nobody guesses


Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Page(Generic[Record]):
    """`has_more`: of the same kind, behind the last one."""

    records: Sequence[Record]
    has_more: bool

    def shown(self, show: Callable[[Record], dict[str, Any]]) -> dict[str, Any]:
        """As OpenAI's lists look."""
        data = [show(record) for record in self.records]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return {"object": "list", "data": data, **ends, "has_more": self.has_more}


def new_id(prefix: str) -> str:
    """Ids of one prefix sort as they were made, to the millisecond."""
    return f"{prefix}{time.time_ns() // 1_000_000:0{_TIME_DIGITS}x}{secrets.token_hex(_RANDOM_DIGITS // 2)}"


def is_id(text: str, prefix: str) -> bool:
    """May it be a part of a path? Nothing else about it is known."""
    return re.fullmatch(rf"{prefix}[0-9a-f]{{{_TIME_DIGITS + _RANDOM_DIGITS}}}", text) is not None


def write_record(path: Path, value: dict[str, Any]) -> None:
    """On disk when it returns; readers see the old record or the new one."""
    with replacing(path) as file:
        file.write(json.dumps(value).encode())
    sync_folder(path.parent)


def read_record(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return value


def sync_folder(folder: Path) -> None:
    """Names that were made, moved or removed in it survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def page_of(
    ids: Iterable[str], find: Callable[[str], Record | None], *, after: str | None, limit: int, is_newest_first: bool
) -> Page[Record]:
    """Those behind `after`, which may be gone by now; `find` answers None for what is not shown."""
    ordered = sorted(ids, reverse=is_newest_first)
    behind = (each for each in ordered if after is None or (each < after if is_newest_first else each > after))
    found = list(islice((record for record in map(find, behind) if record is not None), limit + 1))
    return Page(found[:limit], len(found) > limit)
