"""What an input was when a run read it, so that a later one can say that it has changed. Knows no rows."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tokenmill.bulk.rows import Fields

END_BYTES = 1 << 20  # of its start and of its end: a whole file of many gigabytes would take minutes


def fingerprints(paths: Iterable[str]) -> dict[str, Fields]:
    """By path; a folder, a pattern, a URL or stdin has none, since that is more than one file or none of ours."""
    return {path: fingerprint(Path(path)) for path in paths if Path(path).is_file()}


def fingerprint(path: Path) -> Fields:
    """Size, and a hash of both ends. The time of its last change is left out: a copy is the same input."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(END_BYTES))
        file.seek(max(0, size - END_BYTES))
        digest.update(file.read(END_BYTES))
    return {"bytes": size, "sha256_of_ends": digest.hexdigest()}
