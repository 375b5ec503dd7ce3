"""A bare `XADD` from any language: `prompt TEXT` or `body JSON`, and an `id` if the producer likes. Knows no Redis."""

from collections.abc import Mapping
from dataclasses import dataclass

from tokenmill.wire.errors import DecodeError, InvalidRequestError, TokenmillError
from tokenmill.wire.keys import Lane
from tokenmill.wire.messages.request import Request, check_request_id, decode_object

_FIELDS = frozenset((b"prompt", b"body", b"id"))


@dataclass(frozen=True, slots=True)
class RawEntry:
    """An entry on a lane that carries its payload itself."""

    lane: Lane
    entry_id: str
    fields: Mapping[bytes, bytes]

    @classmethod
    def parse(cls, lane: Lane, entry_id: str, fields: Mapping[bytes, bytes]) -> tuple[str, Request]:
        """The request and its id. DecodeError or InvalidRequestError says what is wrong, and in which field."""
        return cls(lane, entry_id, fields).decode()

    @classmethod
    def identify(cls, lane: Lane, entry_id: str, fields: Mapping[bytes, bytes]) -> str:
        """The id under which the producer waits, whatever is wrong with the rest. Never raises."""
        entry = cls(lane, entry_id, fields)
        try:
            return entry._given_id(entry._object()) or entry.default_id
        except TokenmillError:
            return entry._id_beside() or entry.default_id

    @property
    def default_id(self) -> str:
        """Entry ids alone repeat across lanes."""
        return f"{self.lane.value}-{self.entry_id}"

    def decode(self) -> tuple[str, Request]:
        body = self._object()
        return self._given_id(body) or self.default_id, Request.from_object(body)

    def _object(self) -> dict[str, object]:
        unknown = self.fields.keys() - _FIELDS
        if unknown:
            name = min(unknown).decode("utf-8", "backslashreplace")
            raise InvalidRequestError(
                f"unknown field {name!r}: an entry has prompt or body, and id", param=name, code="unknown_field"
            )
        if (b"prompt" in self.fields) == (b"body" in self.fields):
            raise DecodeError("an entry has either prompt or body", param="prompt")
        if b"body" in self.fields:
            return decode_object(self.fields[b"body"])
        return {"prompt": _text(self.fields[b"prompt"], "prompt")}

    def _given_id(self, body: Mapping[str, object]) -> str | None:
        """The id beside the body or in it; both must agree."""
        beside = _text(self.fields[b"id"], "id") if b"id" in self.fields else None
        inside = body.get("id")
        if beside is not None and inside is not None and beside != inside:
            raise InvalidRequestError("the id beside the body and the id in it differ", param="id")
        given = inside if beside is None else beside
        return None if given is None else check_request_id(given)

    def _id_beside(self) -> str | None:
        try:
            return check_request_id(_text(self.fields[b"id"], "id")) if b"id" in self.fields else None
        except TokenmillError:
            return None


def _text(value: bytes, param: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DecodeError(f"{param} is not UTF-8: {error.reason} at byte {error.start}", param=param) from None
