"""Who a row is: a hash of its content and of all that decides its completion. Knows no files and no queue.

A row is never known by its place in the file, so rows may be added, removed or shuffled between two runs. Equal rows
are told apart by counting: the second of two equal rows is always "the second", wherever it stands.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tokenmill.bulk.rows import JSON, Fields

SEED_BITS = 53  # the integers that every JSON reader of every language keeps exactly


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides a completion beside the row itself. `model` None: whatever the queue serves.

    `sampling` holds only what was asked for, by the names of the wire's SamplingParams; `parameters` names the columns
    that hold a row's own (parameter -> column). `id_column`: rows are known by that column and not by their content.
    """

    column: str | None = None
    template: str | None = None
    system: str | None = None
    is_raw: bool = False
    model: str | None = None
    dtype: str | None = None
    sampling: Mapping[str, JSON] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    id_column: str | None = None

    def describe(self) -> Fields:
        """As JSON, for the manifest and for the hash.

        What came after version 0.1 is left out while it is not used, so that it changes no row's name.
        """
        values = {each.name: _plain(getattr(self, each.name)) for each in fields(self)}
        return {name: value for name, value in values.items() if value != _LATER.get(name, _NEVER)}

    def differences(self, earlier: Fields) -> list[str]:
        """What differs from an earlier run's `describe()`, in words, one line each."""
        before, now = {**_LATER, **earlier}, {**_LATER, **self.describe()}
        names = [each.name for each in fields(self) if each.name not in _MAPPINGS]
        changes = [_change(name, before.get(name), now[name]) for name in names]
        for mapping in _MAPPINGS:
            old, new = _mapping(before.get(mapping)), _mapping(now[mapping])
            changes += [_change(name, old.get(name), new.get(name)) for name in {*old, *new}]
        return sorted(change for change in changes if change is not None)


_NEVER = object()
_MAPPINGS = ("sampling", "parameters")
_LATER: Fields = {"system": None, "parameters": {}, "id_column": None}


def _plain(value: Any) -> JSON:
    return dict(value) if isinstance(value, Mapping) else value


def _mapping(value: JSON) -> Fields:
    return value if isinstance(value, dict) else {}


def _change(name: str, before: JSON, now: JSON) -> str | None:
    return None if before == now else f"{name} was {json.dumps(before)}, now {json.dumps(now)}"


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(value: JSON) -> bytes:
    """One spelling per value: sorted keys, no spaces, UTF-8. Half a surrogate pair raises UnicodeEncodeError."""
    return _CANONICAL.encode(value).encode()


def recipe_digest(recipe: Recipe) -> bytes:
    return hashlib.sha256(canonical(recipe.describe())).digest()


def content_hash(recipe: bytes, row: Fields) -> bytes:
    """Equal for equal rows under equal recipes; `recipe` is a `recipe_digest`."""
    return hashlib.sha256(recipe + canonical(row)).digest()[:16]


def row_hash(content: bytes, occurrence: int, sample: int = 0) -> str:
    """32 hex digits; `occurrence` counts equal rows, `sample` a row's completions, both from 0."""
    which = occurrence.to_bytes(8, "big") + (sample.to_bytes(8, "big") if sample else b"")
    return hashlib.sha256(content + which).hexdigest()[:32]


def seed_of(row: str) -> int:
    """A row's seed when none is asked for: it follows the row to any machine and any number of retries."""
    return int(row, 16) & ((1 << SEED_BITS) - 1)


def sample_seed(seed: int, sample: int) -> int:
    """The seed of a row's completion number `sample` under a seed that was asked for."""
    return seed if sample == 0 else seed_of(hashlib.sha256(f"{seed}:{sample}".encode()).hexdigest()[:32])


def custom_id_of(row: Fields, row_hash: str) -> str:
    """What the user calls the row: its `custom_id`, else its `id`, else the row hash."""
    for name in ("custom_id", "id"):
        value = row.get(name)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
            return str(value)
    return row_hash
