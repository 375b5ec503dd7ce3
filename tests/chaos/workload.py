"""The campaign's requests, drawn from a seed: every kind of sampling, ending and way in. Pure; knows no server."""

import json
import random
from dataclasses import dataclass, field
from typing import Literal

Way = Literal["client", "delayed", "raw", "raw without id", "broken"]

_WAYS: tuple[Way, ...] = ("client", "delayed", "raw", "raw without id", "broken")
_WORDS = ("rain", "träume", "железо", "百万", "🙂", "queue", "mill", "grün", "stone", "λόγος", "river", "token")
_BROKEN = (
    {"body": b"{not json"},
    {"body": b'["a list"]'},
    {"prompt": b"a", "body": b'{"prompt": "b"}'},
    {"prompt": b"\xff\xfe"},
    {"prompt": b"hello", "colour": b"red"},
)


@dataclass(frozen=True, slots=True)
class Wish:
    """One request and how it comes: `fields` as a client's arguments, or `entry` as a lane's fields."""

    request_id: str
    way: Way
    fields: dict[str, object] = field(default_factory=dict)
    entry: dict[str, bytes] = field(default_factory=dict)
    delay_ms: int = 0
    cancel_after_s: float | None = None

    @property
    def has_deadline(self) -> bool:
        return "deadline_s" in self.fields


class Workload:
    """An endless source of wishes, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._num_wishes = 0

    def take(self, number: int) -> list[Wish]:
        return [self._wish() for _ in range(number)]

    def _wish(self) -> Wish:
        self._num_wishes += 1
        request_id = f"q-{self._num_wishes}"
        way = self._random.choices(_WAYS, weights=(70, 8, 12, 8, 2))[0]
        if way == "broken":
            return Wish(request_id, "broken", entry={**self._random.choice(_BROKEN), "id": request_id.encode()})
        fields = self._fields()
        cancel_after_s = self._random.choice((0.0, 0.1, 0.5, 1.0)) if self._random.random() < 0.08 else None
        if way in ("client", "delayed"):
            delay_ms = self._random.choice((200, 1500, 4000)) if way == "delayed" else 0
            return Wish(request_id, way, fields, delay_ms=delay_ms, cancel_after_s=cancel_after_s)
        entry = {"body": _body(fields)}
        if way == "raw":
            entry["id"] = request_id.encode()
        return Wish(request_id, way, fields, entry, cancel_after_s=cancel_after_s)

    def _fields(self) -> dict[str, object]:
        fields: dict[str, object] = {
            "prompt": " ".join(self._random.choices(_WORDS, k=self._random.randint(1, 12))),
            "max_tokens": self._random.choice((1, 2, 8, 20, 40, 60, 80, 120, 160)),
        }
        fields |= self._sampling()
        if self._random.random() < 0.25:
            fields["stop"] = self._random.sample(("aa", "e ", "io", ". s", "é", "zzz"), k=2)
        if self._random.random() < 0.1:
            fields["n"] = self._random.choice((2, 3))
        return fields | self._options()

    def _sampling(self) -> dict[str, object]:
        kind = self._random.choice(("greedy", "greedy", "seeded", "drawn", "penalties", "invalid"))
        if kind == "invalid" and self._random.random() > 0.2:
            kind = "drawn"
        kinds: dict[str, dict[str, object]] = {
            "greedy": {"temperature": 0.0},
            "seeded": {"temperature": 1.2, "seed": self._random.randint(-(2**62), 2**63), "top_p": 0.9},
            "drawn": {"temperature": 0.8, "top_k": 5},
            "penalties": {"temperature": 0.7, "presence_penalty": 0.6, "frequency_penalty": 0.3},
            "invalid": {"model": "another"},
        }
        return kinds[kind]

    def _options(self) -> dict[str, object]:
        options: dict[str, object] = {}
        if self._random.random() < 0.12:
            options["stream"] = "final"
        if self._random.random() < 0.06:
            options["deadline_s"] = self._random.choice((0.3, 1.0, 3.0, 120.0))
        if self._random.random() < 0.1:
            options["group"] = f"g-{self._random.randint(1, 3)}"
        if self._random.random() < 0.3:
            options["priority"] = self._random.choice(("high", "bulk"))
        return options


_OPTIONS = frozenset(("stream", "deadline_s", "group", "priority"))


def _body(fields: dict[str, object]) -> bytes:
    """As any language sends it: OpenAI's fields, and ours under `x`."""
    options = {name: value for name, value in fields.items() if name in _OPTIONS}
    rest = {name: value for name, value in fields.items() if name not in _OPTIONS}
    return json.dumps(rest | ({"x": options} if options else {})).encode()
