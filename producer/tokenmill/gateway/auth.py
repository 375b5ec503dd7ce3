"""Who asks, and what they may: one dependency that every /v1 route takes. Knows no route."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.keyring import ApiKey, KeyLimits, id_of, is_right
from tokenmill.gateway.state import GatewayOf
from tokenmill.wire.messages import Priority
from tokenmill.wire.store import AsyncStore, GateTransitions, connect_async

KNOWN_S = 2.0  # a key is looked up this often at most; so long a revoked one may go on
NO_LIMITS = KeyLimits()
NOBODY = "default"  # the tenant of all who need no key

_RANKS: dict[str, int] = {"bulk": 0, "normal": 1, "high": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """`key_id`: of the API key, None for anybody; `queue`: where their requests go, None for the gateway's own.

    `tenant`: whose files and batches they see. `priority`: the highest that their requests may have.
    """

    key_id: str | None = None
    queue: str | None = None
    tenant: str = NOBODY
    priority: Priority = "high"
    limits: KeyLimits = NO_LIMITS

    def request_id(self, given: str) -> str:
        """The queue's id for one that the caller chose: two callers may choose the same."""
        return given if self.key_id is None else f"{self.key_id}:{given}"

    def owns(self, request_id: str) -> bool:
        return self.key_id is None or request_id.startswith(f"{self.key_id}:")

    def fenced(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A request's fields as this caller may send them. ApiError 403: a priority above its own."""
        fields = dict(fields)
        wanted = fields.get("priority")
        if wanted in _RANKS and _RANKS[str(wanted)] > _RANKS[self.priority]:
            message = f"this API key may ask with priority {self.priority!r} at most"
            raise ApiError(403, message, param="x.priority", code="priority_not_allowed")
        if wanted is None and self.priority == "bulk":
            fields["priority"] = self.priority
        for name in ("id", "group"):  # of one's own alone: who names another's would join it
            if isinstance(fields.get(name), str) and not self.owns(fields[name]):
                fields[name] = self.request_id(fields[name])
        return fields


ANONYMOUS = Caller()


class KeyBook:
    """The API keys, looked up on the queue's server and remembered for a moment."""

    def __init__(self, redis_url: str) -> None:
        self.gate = GateTransitions()
        self.store = AsyncStore(connect_async(redis_url, key=self.gate.keys.tag))
        self._known: dict[str, tuple[float, ApiKey]] = {}

    async def caller(self, authorization: str | None) -> Caller:
        """ApiError 401; UnavailableError: nobody is let in while the server does not answer."""
        scheme, _, text = (authorization or "").partition(" ")
        text = text.strip()
        if scheme.lower() != "bearer" or not text:
            raise _refusal("You didn't provide an API key. Send it as `Authorization: Bearer sk-tm-...`.")
        key_id = id_of(text)
        key = None if key_id is None else await self._find(key_id)
        if not is_right(text, key) or key is None:
            raise _refusal(f"Incorrect API key provided: {_hidden(text)}.")
        return Caller(key_id=key.key_id, queue=key.queue, tenant=key.tenant, priority=key.priority, limits=key.limits)

    async def _find(self, key_id: str) -> ApiKey | None:
        looked_s, key = self._known.get(key_id, (float("-inf"), None))
        if key is not None and time.monotonic() - looked_s < KNOWN_S:
            return key
        self._known.pop(key_id, None)
        record = await self.store.run(self.gate.find(key_id))
        if record is None:
            return None
        key = ApiKey.decode(record)
        self._known[key_id] = (time.monotonic(), key)
        return key

    async def close(self) -> None:
        await self.store.close()


async def authorize(request: Request, gateway: GatewayOf) -> Caller:
    if gateway.keys is None:
        return ANONYMOUS
    return await gateway.keys.caller(request.headers.get("authorization"))


def _refusal(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _hidden(text: str) -> str:
    """Enough to know which one it was."""
    return f"{text[:6]}***{text[-4:]}" if len(text) >= 20 else "***"


CallerOf = Annotated[Caller, Depends(authorize)]
