"""What a row of a dataset is, good or bad. Knows no files, prompts, queues or results."""

from dataclasses import dataclass
from typing import TypeAlias

JSON: TypeAlias = "dict[str, JSON] | list[JSON] | str | int | float | bool | None"
Fields: TypeAlias = dict[str, JSON]


class InputError(Exception):
    """The input as a whole cannot be read as rows; the message says why."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input; `number` counts rows from 1 over all of its files, blank lines left out."""

    number: int
    fields: Fields


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read, with the reason; the rows around it are fine. `source` is its text or its fields."""

    number: int
    reason: str
    source: JSON
