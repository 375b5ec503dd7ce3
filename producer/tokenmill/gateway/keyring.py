"""API keys: made, hashed, checked, revoked; kept on the queue's server. Knows no HTTP.

A key is `sk-tm-<id>-<secret>`. The id finds the record, the secret is 32 random bytes, and only the SHA-256 of the
whole key is stored. A slow, salted hash is for passwords that people choose: it makes guessing dear. 256 random bits
cannot be guessed, so a fast hash loses nothing, and every request can afford it.
"""

import hashlib
import hmac
import json
import re
import secrets
import time
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

from tokenmill.wire.errors import DecodeError, InvalidRequestError
from tokenmill.wire.keys import PRIORITY_LANES
from tokenmill.wire.messages import Priority

PREFIX = "sk-tm-"
ID_BYTES = 6  # of the part that is shown and logged: it names a key, it protects nothing
SECRET_BYTES = 32

_KEY = re.compile(rf"{PREFIX}([0-9a-f]{{{2 * ID_BYTES}}})-[A-Za-z0-9_-]{{43}}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NOBODYS_DIGEST = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """None: without a limit. Tokens: of prompts and answers."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None

    def is_limited(self) -> bool:
        return any(getattr(self, each.name) is not None for each in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is known of a key; of its secret, the digest. `tenant`: whose files and batches it sees.

    `queue` None: the gateway's own. `priority`: the highest that its requests may have. Times: Unix seconds.
    """

    key_id: str
    digest: str
    tenant: str
    created_at: int
    queue: str | None = None
    priority: Priority = "high"
    limits: KeyLimits = KeyLimits()
    revoked_at: int | None = None

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, record: bytes) -> "ApiKey":
        """DecodeError: somebody else wrote it."""
        try:
            value = json.loads(record)
            return cls(**{**value, "limits": KeyLimits(**value["limits"])})
        except (ValueError, TypeError, KeyError) as error:
            raise DecodeError(f"a record of an API key is broken: {type(error).__name__}") from error


class NewKey(NamedTuple):
    """`text` is shown once and kept nowhere."""

    text: str
    key: ApiKey


def make_key(
    tenant: str | None = None, *, queue: str | None = None, priority: Priority = "high", limits: KeyLimits | None = None
) -> NewKey:
    """A fresh key. Without a tenant it is one of its own. InvalidRequestError: a name that may not be."""
    if priority not in PRIORITY_LANES:
        raise InvalidRequestError(f"priority is one of {', '.join(PRIORITY_LANES)}", param="priority")
    key_id = secrets.token_hex(ID_BYTES)
    tenant = tenant or f"key-{key_id}"
    if not _NAME.fullmatch(tenant):
        raise InvalidRequestError("a tenant's name is 1 to 64 characters out of A-Z a-z 0-9 . _ -", param="tenant")
    text = f"{PREFIX}{key_id}-{secrets.token_urlsafe(SECRET_BYTES)}"
    key = ApiKey(
        key_id=key_id,
        digest=digest_of(text),
        tenant=tenant,
        created_at=int(time.time()),
        queue=queue,
        priority=priority,
        limits=limits or KeyLimits(),
    )
    return NewKey(text, key)


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def id_of(text: str) -> str | None:
    """The public part of a key; None: this is no key of ours."""
    found = _KEY.fullmatch(text)
    return found[1] if found else None


def is_right(text: str, key: ApiKey | None) -> bool:
    """In the same time whatever was presented, so that no answer's delay tells how much of it was right."""
    expected = _NOBODYS_DIGEST if key is None else key.digest
    is_equal = hmac.compare_digest(digest_of(text), expected)
    return is_equal and key is not None and key.revoked_at is None
