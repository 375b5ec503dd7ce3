"""What a tenant may use: how many runs at once, how many rows and tokens a day. Knows no rq and no rows.

A day is one of UTC. Rows and tokens are counted as they are finished, once a second, so a limit is passed by what is in
flight and no more.
"""

import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta

from tokenmill.wire.keys import USAGE_TTL_S, RunKeys
from tokenmill.wire.store import Command, Store, checked

EVERYONE = "*"  # the tenant whose limits hold for all that have none of their own
NOBODY = "default"  # the tenant of a run that names none


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """None: without a limit."""

    runs: int | None = None
    rows_per_day: int | None = None
    tokens_per_day: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Of one tenant on one day. Tokens: of prompts and completions."""

    rows: int = 0
    tokens: int = 0

    def reached(self, limits: Limits) -> str | None:
        """Which limit is reached, in words."""
        if limits.rows_per_day is not None and self.rows >= limits.rows_per_day:
            return f"{self.rows:,} of {limits.rows_per_day:,} rows today"
        if limits.tokens_per_day is not None and self.tokens >= limits.tokens_per_day:
            return f"{self.tokens:,} of {limits.tokens_per_day:,} tokens today"
        return None


class LimitBook:
    """The limits and the usage of all tenants, on RQ's server."""

    def __init__(self, store: Store, keys: RunKeys | None = None) -> None:
        self._store = store
        self._keys = keys or RunKeys()

    def limits_of(self, tenant: str | None) -> Limits:
        own, everyone = checked(self._send(("HMGET", self._keys.limits, tenant or NOBODY, EVERYONE)))
        return _read(own or everyone)

    def all_limits(self) -> dict[str, Limits]:
        reply: dict[bytes, bytes] = checked(self._send(("HGETALL", self._keys.limits)))
        return {tenant.decode(): _read(value) for tenant, value in sorted(reply.items())}

    def set_limits(self, tenant: str, limits: Limits | None) -> None:
        """None: it has none of its own any more."""
        if limits is None:
            checked(self._send(("HDEL", self._keys.limits, tenant)))
        else:
            checked(self._send(("HSET", self._keys.limits, tenant, json.dumps(asdict(limits)))))

    def use(self, tenant: str | None, *, rows: int, tokens: int) -> Usage:
        """Counts what was finished; answers what it comes to today."""
        key = self._keys.usage(tenant or NOBODY, _today())
        commands: list[Command] = [
            ("HINCRBY", key, "rows", rows),
            ("HINCRBY", key, "tokens", tokens),
            ("EXPIRE", key, USAGE_TTL_S),
        ]
        counted = [checked(reply) for reply in self._store.send(commands)]
        return Usage(rows=counted[0], tokens=counted[1])

    def usage_of(self, tenant: str) -> Usage:
        rows, tokens = checked(self._send(("HMGET", self._keys.usage(tenant, _today()), "rows", "tokens")))
        return Usage(rows=int(rows or 0), tokens=int(tokens or 0))

    def _send(self, command: Command) -> object:
        return self._store.send([command])[0]


def seconds_to_midnight() -> int:
    """Until the next day of UTC begins, rounded up."""
    now = datetime.now(UTC)
    midnight = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
    return int((midnight - now).total_seconds()) + 1


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _read(value: bytes | None) -> Limits:
    known = {field.name for field in fields(Limits)}
    return Limits(**{name: limit for name, limit in json.loads(value or b"{}").items() if name in known})
