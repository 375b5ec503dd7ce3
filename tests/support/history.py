"""All that is known of a run, as plain values: what was asked, told, seen, held and broken. Knows no server.

`dump` and `load` keep it as JSON lines, one fact a line, so that a bad run can be looked at again.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tests.support.ledger import Tenure, Writes


@dataclass(frozen=True, slots=True)
class Accepted:
    """The server took this request. `at_s`: seconds since the run began; `fault`: why it is no request at all."""

    request_id: str
    body: str
    at_s: float = 0.0
    has_deadline: bool = False
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Said:
    """One choice in full."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Expected:
    """What an undisturbed engine makes of a request: its choices, or the code of its error."""

    request_id: str
    choices: tuple[Said, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """One entry of a result stream."""

    entry_id: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reading:
    """The entries of one result that one reader got, in its order; `reader` "" is the stream itself, at rest."""

    reader: str
    request_id: str
    entries: tuple[Told, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client's `stream` and `result` gave its caller."""

    reader: str
    request_id: str
    entry_ids: tuple[str, ...]
    text: str
    finish_reason: str


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job's hash without its body."""

    request_id: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Event:
    """Something was done to the run: a kill, a zombie, a restart ..."""

    kind: str
    at_s: float = 0.0
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Rest:
    """What stands on the server when all is done. `waiting`: key -> entries, members or pending ones left in it."""

    waiting: Mapping[str, int] = field(default_factory=dict)
    without_ttl: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Effort:
    """Tokens drawn by all engines together, and what may be drawn twice: `num_losses` x `num_rows` x `window`."""

    num_computed: int = 0
    num_losses: int = 0
    num_rows: int = 0
    window: int = 0
    num_aside: int = 0


@dataclass
class History:
    accepted: dict[str, Accepted] = field(default_factory=dict)
    expected: dict[str, Expected] = field(default_factory=dict)
    streams: dict[str, Reading] = field(default_factory=dict)
    jobs: dict[str, JobRecord] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    tenures: list[Tenure] = field(default_factory=list)
    writes: list[Writes] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    guilty: set[str] = field(default_factory=set)  # no requests of ours, meant to be dead-lettered
    rest: Rest = Rest()
    effort: Effort = Effort()

    def dump(self, path: Path) -> None:
        with path.open("w", encoding="utf-8") as lines:
            for part in fields(self):
                for value in _values(getattr(self, part.name)):
                    record = value if isinstance(value, str) else asdict(value)
                    lines.write(json.dumps({"part": part.name, "value": record}, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> "History":
        history = cls()
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                history._add(record["part"], record["value"])
        return history

    def _add(self, part: str, value: Any) -> None:
        if part in _RECORDS:
            record = _RECORDS[part](**_tuples(value))
            held = getattr(self, part)
            if isinstance(held, dict):
                held[record.request_id] = record
            elif isinstance(held, list):
                held.append(record)
            else:
                setattr(self, part, record)
        else:
            getattr(self, part).add(value)


_RECORDS: dict[str, Any] = {
    "accepted": Accepted,
    "expected": Expected,
    "streams": Reading,
    "jobs": JobRecord,
    "readings": Reading,
    "answers": Answer,
    "dead_letters": DeadLetter,
    "tenures": Tenure,
    "writes": Writes,
    "events": Event,
    "rest": Rest,
    "effort": Effort,
}


def _values(part: Any) -> list[Any]:
    if isinstance(part, dict):
        return list(part.values())
    return sorted(part) if isinstance(part, set) else part if isinstance(part, list) else [part]


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists back to the tuples they were, and the records in them."""
    changed = {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
    if "entries" in changed:
        changed["entries"] = tuple(Told(**entry) for entry in changed["entries"])
    if "choices" in changed:
        changed["choices"] = tuple(Said(**_tuples(choice)) for choice in changed["choices"])
    return changed
