"""Dead letters: what could not be answered, and why. Reads them, takes them away. Knows no connection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tokenmill.wire.keys import MAX_JOBS_PER_CALL, PRIORITY_LANES, Keys
from tokenmill.wire.messages import Request
from tokenmill.wire.store.calls import Command, Procedure, Steps, checked

FIELD = b"field:"  # before the names of the fields of an entry that was no request
_NAMED = (b"reason", b"id", b"lane", b"entry")
_OWN_FIELDS = frozenset((*_NAMED, b"body"))


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One letter. `entry` is the lane entry that it tells of; `body` is None where that was no request of ours."""

    letter_id: str
    reason: str
    request_id: str
    lane: str
    entry: str
    body: bytes | None = None
    fields: Mapping[bytes, bytes] = field(default_factory=dict)
    partition: int = 0

    @classmethod
    def decode(cls, letter_id: str, fields: Mapping[bytes, bytes], partition: int = 0) -> "DeadLetter":
        """Never raises: a letter that cannot be shown could not be purged either."""
        reason, request_id, lane, entry = (_text(fields.get(name, b"")) for name in _NAMED)
        rest = {name.removeprefix(FIELD): value for name, value in fields.items() if name not in _OWN_FIELDS}
        return cls(letter_id, reason, request_id, lane, entry, fields.get(b"body") or None, rest, partition)

    @property
    def sort_key(self) -> tuple[int, int]:
        """As a stream sorts."""
        time_ms, _, number = self.letter_id.partition("-")
        return int(time_ms), int(number)

    @property
    def time_ms(self) -> int:
        """Server ms: when it was written."""
        return self.sort_key[0]

    @property
    def num_bytes(self) -> int:
        """Size of what it carries, and never the thing itself."""
        if self.body is not None:
            return len(self.body)
        return sum(len(name) + len(value) for name, value in self.fields.items())

    def arguments(self, body: bytes) -> dict[str, object]:
        """`Client.submit`'s arguments to ask `body` again. TokenmillError: that is no request."""
        request = Request.decode(body)
        fields = {name: getattr(request, name) for name in Request.model_fields}
        return {**fields, "priority": _PRIORITIES.get(self.lane, request.priority)}


_PRIORITIES = {lane.value: priority for priority, lane in PRIORITY_LANES.items()}  # an entry's lane decides


def read_letters(keys: Keys, *, limit: int | None = None) -> Procedure[list[DeadLetter]]:
    """The newest `limit` of a partition's dead letters, or all; newest first."""
    return Procedure(lambda: _read(keys, limit))


def count_letters(keys: Keys) -> Procedure[int]:
    return Procedure(lambda: _count(keys))


def remove_letters(keys: Keys, letter_ids: Sequence[str]) -> Procedure[int]:
    """Deletes them for good; how many there still were."""
    return Procedure(lambda: _remove(keys, letter_ids))


def server_time() -> Procedure[int]:
    """Server ms: letters are dated by the server's clock."""
    return Procedure(_server_ms)


def find_body(keys: Keys, letter: DeadLetter) -> Procedure[bytes | None]:
    """The letter's body or, while it lives, that of the job it tells of; None where nothing can be asked again."""
    return Procedure(lambda: _find_body(keys, letter))


def _read(keys: Keys, limit: int | None) -> Steps[list[DeadLetter]]:
    letters: list[DeadLetter] = []
    end = "+"
    while limit is None or len(letters) < limit:
        count = MAX_JOBS_PER_CALL if limit is None else min(MAX_JOBS_PER_CALL, limit - len(letters))
        (reply,) = yield [("XREVRANGE", keys.dead, end, "-", "COUNT", count)]
        page = [DeadLetter.decode(entry_id.decode(), fields, keys.partition) for entry_id, fields in checked(reply)]
        letters += page
        if len(page) < count:
            break
        end = f"({page[-1].letter_id}"
    return letters


def _count(keys: Keys) -> Steps[int]:
    (reply,) = yield [("XLEN", keys.dead)]
    return int(checked(reply))


def _remove(keys: Keys, letter_ids: Sequence[str]) -> Steps[int]:
    removed = 0
    for start in range(0, len(letter_ids), MAX_JOBS_PER_CALL):
        command: Command = ("XDEL", keys.dead, *letter_ids[start : start + MAX_JOBS_PER_CALL])
        (reply,) = yield [command]
        removed += int(checked(reply))
    return removed


def _server_ms() -> Steps[int]:
    (reply,) = yield [("TIME",)]
    seconds, microseconds = checked(reply)
    return int(seconds) * 1000 + int(microseconds) // 1000


def _find_body(keys: Keys, letter: DeadLetter) -> Steps[bytes | None]:
    """The job counts only if it died of this very entry: its id may by now be another request's."""
    if letter.body is not None or letter.fields:
        return letter.body
    (reply,) = yield [("HMGET", keys.job(letter.request_id), "state", "entry", "body")]
    state, entry, body = checked(reply)
    is_ours = state == b"dead" and _text(entry or b"") == letter.entry
    return body if is_ours else None


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
