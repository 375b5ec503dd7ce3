"""The transitions of the gateway's API keys, as pure builders of calls: kept, found, charged. Knows no HTTP."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from tokenmill.wire.keys import GATE_USE_TTL_S, GateKeys
from tokenmill.wire.store.calls import Call, Command, Procedure, Script, Steps, checked

# never_*: more than the whole limit, so that no waiting helps.
Verdict = Literal["ok", "requests", "tokens", "day", "never_minute", "never_day"]


class Admission(NamedTuple):
    """`requests_left`, `tokens_left`: of this minute. `*_reset_ms`: until all of it is there again.

    `used`: tokens of the day so far, this request's among them when it is `ok`. `day`: for `settle`.
    """

    verdict: Verdict
    requests_left: int
    tokens_left: int
    requests_reset_ms: int
    tokens_reset_ms: int
    retry_ms: int
    used: int
    day: str


class GateTransitions:
    """Builders of calls. A key's record is bytes here; who writes it knows its form."""

    def __init__(self, keys: GateKeys | None = None) -> None:
        self.keys = keys or GateKeys()

    def admit(
        self, key_id: str, *, requests_per_minute: int, tokens_per_minute: int, tokens_per_day: int, tokens: int
    ) -> Call[Admission]:
        """Charges one request of `tokens`, or says why not; a limit of 0 is none. A lost reply charges twice."""
        limits = (requests_per_minute, tokens_per_minute, tokens_per_day)
        args = (*limits, tokens, GATE_USE_TTL_S)
        return Call(Script.load("gate_admit"), (self.keys.use(key_id),), args, _admission)

    def settle(self, key_id: str, *, difference: int, day: str) -> Call[int]:
        """Corrects what `admit` charged by what was really used."""
        return Call(Script.load("gate_settle"), (self.keys.use(key_id),), (difference, day), int)

    def put(self, key_id: str, record: bytes) -> Procedure[None]:
        return Procedure(lambda: _write([("HSET", self.keys.keys, key_id, record)]))

    def find(self, key_id: str) -> Procedure[bytes | None]:
        return Procedure(lambda: _find(self.keys, key_id))

    def all_records(self) -> Procedure[list[bytes]]:
        return Procedure(lambda: _all_records(self.keys))

    def used_today(self, key_ids: Sequence[str]) -> Procedure[list[int]]:
        """Tokens, one number for each key."""
        return Procedure(lambda: _used_today(self.keys, key_ids))


def _admission(reply: Any) -> Admission:
    verdict, requests_left, tokens_left, requests_reset_ms, tokens_reset_ms, retry_ms, used, day = reply
    return Admission(
        verdict=verdict.decode(),
        requests_left=int(requests_left),
        tokens_left=int(tokens_left),
        requests_reset_ms=int(requests_reset_ms),
        tokens_reset_ms=int(tokens_reset_ms),
        retry_ms=int(retry_ms),
        used=int(used),
        day=day.decode(),
    )


def _write(commands: Sequence[Command]) -> Steps[None]:
    for reply in (yield commands):
        checked(reply)


def _find(keys: GateKeys, key_id: str) -> Steps[bytes | None]:
    (reply,) = yield [("HGET", keys.keys, key_id)]
    record: bytes | None = checked(reply)
    return record


def _all_records(keys: GateKeys) -> Steps[list[bytes]]:
    (reply,) = yield [("HGETALL", keys.keys)]
    return list(checked(reply).values())


def _used_today(keys: GateKeys, key_ids: Sequence[str]) -> Steps[list[int]]:
    time, *found = yield [("TIME",), *(("HMGET", keys.use(key_id), "day", "used") for key_id in key_ids)]
    today = str(int(checked(time)[0]) // 86_400).encode()
    return [int(used or 0) if day == today else 0 for day, used in map(checked, found)]
