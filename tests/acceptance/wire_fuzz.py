"""Entries as nobody should send them, from a seed: what a lane may hold when its producers are broken or hostile."""

import json
import random
from collections.abc import Iterator

from tokenmill.wire.keys import MAX_BODY_BYTES, Lane

Fields = dict[bytes, bytes]

NAMES = ["prompt", "messages", "model", "priority", "deadline_s", "group", "stream", "result_ttl_s", "x", "id", "n"]
NAMES += ["temperature", "top_p", "top_k", "min_p", "max_tokens", "min_tokens", "stop", "stop_token_ids", "seed"]
NAMES += ["logprobs", "logit_bias", "repetition_penalty", "presence_penalty", "tools", "response_format", "user"]
VALUES: list[object] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    7,
    1e308,
    -0.0,
    2**31,
    2**63,
    2**64,
    2**200,
    "",
    "x",
    "\x00",
    "\ud800",
    "1e5",
]
VALUES += [[], {}, [[]], [None], ["a", 1], [0.5], [-1], [2**40], {"a": {}}, {"5": 1e9}, [{"role": "user"}], "é" * 300]
CONSTANTS = [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"nul", b"", b"{", b'"\\ud800"', b"\xef\xbb\xbf{}"]
IDS = [b"", b" ", b"a b", b"\xff\xfe", b"a" * 201, b"{x}", b"../r", b"q\n", b"\x00", "é".encode(), b"*", b"0-1"]


class Fuzzer:
    """`taken`: ids of jobs that are there already, and must not be disturbed."""

    def __init__(self, seed: int, taken: list[str]) -> None:
        self._random = random.Random(seed)
        self._taken = [name.encode() for name in taken]
        self._kinds = [self._noise, self._bytes, self._types, self._constants, self._ids, self._bare, self._taken_id]
        self._rare = [self._huge, self._many, self._deep, self._valid]

    def entries(self, num: int) -> Iterator[tuple[Lane, Fields]]:
        for _ in range(num):
            kinds = self._rare if self._random.random() < 0.04 else self._kinds
            yield self._lane(), self._random.choice(kinds)()

    def _lane(self) -> Lane:
        """The quarantine lane is served one by one, so it gets few."""
        return Lane.QUARANTINE if self._random.random() < 0.02 else self._random.choice(list(Lane)[:4])

    def _noise(self) -> Fields:
        return {self._some_bytes(12): self._some_bytes(40) for _ in range(self._random.randint(1, 5))}

    def _bytes(self) -> Fields:
        return {self._random.choice([b"body", b"prompt"]): self._some_bytes(200), **self._maybe_id()}

    def _types(self) -> Fields:
        """Names that mean something, with values of every wrong kind; now and then right ones."""
        body: dict[str, object] = {"prompt": "hi", "max_tokens": 2} if self._random.random() < 0.5 else {}
        for _ in range(self._random.randint(1, 3)):
            body[self._random.choice(NAMES)] = self._random.choice(VALUES)
        return {b"body": json.dumps(body).encode("utf-8", "surrogatepass"), **self._maybe_id()}

    def _constants(self) -> Fields:
        name, value = self._random.choice(NAMES).encode(), self._random.choice(CONSTANTS)
        return {b"body": b'{"prompt": "hi", "max_tokens": 2, "%s": %s}' % (name, value)}

    def _ids(self) -> Fields:
        return {b"id": self._random.choice(IDS), self._random.choice([b"prompt", b"body", b"group", b"other"]): b"{}"}

    def _bare(self) -> Fields:
        """As `submit` adds them, with ids and groups of nobody."""
        fields = {b"id": self._random.choice([*IDS, self._some_bytes(12), b"nobody-1", b"nobody-2"])}
        if self._random.random() < 0.5:
            fields[b"group"] = self._random.choice([b"", b"g", b"\xff", b"{g}", self._some_bytes(8)])
        return fields

    def _taken_id(self) -> Fields:
        fields = {b"id": self._random.choice(self._taken)}
        more: list[Fields] = [{}, {b"group": b"g"}, {b"group": b"\xff"}, {b"prompt": b"another"}, {b"body": b"{"}]
        return fields | self._random.choice([*more, {b"id": b"x", b"prompt": b"a"}])

    def _huge(self) -> Fields:
        name = self._random.choice([b"body", b"prompt", b"id", b"group", b"nonsense"])
        return {name: b"x" * self._random.choice([MAX_BODY_BYTES // 4, MAX_BODY_BYTES, MAX_BODY_BYTES + 1])}

    def _many(self) -> Fields:
        return {b"field-%d" % number: b"x" for number in range(self._random.choice([100, 1000]))}

    def _deep(self) -> Fields:
        depth = self._random.choice([50, 990, 20_000])
        inner = b"[" * depth + b"]" * depth if self._random.random() < 0.5 else b'{"a":' * depth + b"1" + b"}" * depth
        return {b"body": b'{"%s": %s}' % (self._random.choice(NAMES).encode(), inner)}

    def _valid(self) -> Fields:
        return {b"body": b'{"prompt": "hi", "max_tokens": 3}', **self._maybe_id()}

    def _maybe_id(self) -> Fields:
        return {} if self._random.random() < 0.7 else {b"id": b"id-%d" % self._random.randint(0, 500)}

    def _some_bytes(self, most: int) -> bytes:
        return self._random.randbytes(self._random.randint(0, most))
