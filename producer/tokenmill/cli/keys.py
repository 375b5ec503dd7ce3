"""`tokenmill keys`: makes, lists and revokes the gateway's API keys. Knows no HTTP."""

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import click

from tokenmill.cli.exits import fail, with_exit_codes
from tokenmill.cli.options import json_option, redis_option
from tokenmill.gateway.keyring import ApiKey, KeyLimits, make_key
from tokenmill.wire.keys import PRIORITY_LANES
from tokenmill.wire.store import GateTransitions, Store, connect

_COUNT = click.IntRange(min=1)
_GATE = GateTransitions()


@click.group("keys")
def keys() -> None:
    """Make, list and revoke the API keys that a gateway asks for when it runs with --require-keys.

    \b
    tokenmill keys create --tenant team-a --requests-per-minute 60 --tokens-per-day 2000000
    tokenmill keys list
    tokenmill keys revoke 1f2e3d4c5b6a
    """


@keys.command(
    "create",
    help=with_exit_codes(
        """Make a key and print it, once: only its SHA-256 is stored, on the queue's server.

        A key without --tenant is its own tenant. Keys of one tenant see the same files and batches, so that a key can
        be replaced by another.
        """,
        "0 made, 2 wrong usage, 3 no server",
    ),
)
@click.option("--tenant", metavar="NAME", help="Who uses it; also the tenant of its batches (`bulk limits`).")
@click.option("--queue", metavar="NAME", help="Where its requests go; by default the gateway's own queue.")
@click.option(
    "--priority",
    type=click.Choice(list(PRIORITY_LANES)),
    default="high",
    show_default=True,
    help="The highest that its requests may have.",
)
@click.option("--requests-per-minute", type=_COUNT, metavar="N")
@click.option("--tokens-per-minute", type=_COUNT, metavar="N", help="Of prompts and answers.")
@click.option("--tokens-per-day", type=_COUNT, metavar="N", help="Of prompts and answers, until 0:00 UTC.")
@redis_option
@json_option
def create(redis_url: str, as_json: bool, **options: Any) -> None:
    limits = KeyLimits(**{name: options.pop(name) for name in list(options) if name.endswith(("_minute", "_day"))})
    text, key = make_key(limits=limits, **options)
    with _opened(redis_url) as store:
        store.run(_GATE.put(key.key_id, key.encode()))
    if as_json:
        click.echo(json.dumps({"key": text, **_shown(key, used=0)}))
        return
    click.echo(text)
    click.echo(f"tokenmill: this is key {key.key_id} of {key.tenant}; it is not shown again", err=True)


@keys.command("list", help=with_exit_codes("Show all keys, without their secrets.", "0 shown, 3 no server"))
@redis_option
@json_option
def list_command(redis_url: str, as_json: bool) -> None:
    with _opened(redis_url) as store:
        found = sorted(map(ApiKey.decode, store.run(_GATE.all_records())), key=lambda key: key.created_at)
        used = store.run(_GATE.used_today([key.key_id for key in found]))
    if as_json:
        click.echo(json.dumps([_shown(key, used=tokens) for key, tokens in zip(found, used, strict=True)]))
        return
    for key, tokens in zip(found, used, strict=True):
        click.echo(_line(key, tokens))
    if not found:
        click.echo("no keys")


@keys.command(
    "revoke",
    help=with_exit_codes(
        "Refuse a key from now on, on every gateway, within seconds. What it has sent goes on.",
        "0 revoked, 1 no such key, 3 no server",
    ),
)
@click.argument("key_id", metavar="ID")
@redis_option
def revoke(key_id: str, redis_url: str) -> None:
    with _opened(redis_url) as store:
        record = store.run(_GATE.find(key_id))
        if record is None:
            fail(f"no key {key_id!r}: `tokenmill keys list` shows the ids of all")
        key = ApiKey.decode(record)
        store.run(_GATE.put(key_id, replace(key, revoked_at=key.revoked_at or int(time.time())).encode()))
    click.echo(f"key {key_id} of {key.tenant} is revoked")


@contextmanager
def _opened(url: str) -> Iterator[Store]:
    with closing(Store(connect(url, key=_GATE.keys.tag))) as store:
        yield store


def _shown(key: ApiKey, *, used: int) -> dict[str, Any]:
    shown = {"id": key.key_id, **asdict(key), "tokens_used_today": used}
    del shown["key_id"], shown["digest"]
    return shown


def _line(key: ApiKey, used: int) -> str:
    limits = key.limits
    parts = [
        key.key_id,
        key.tenant,
        "revoked" if key.revoked_at else f"up to {key.priority}",
        f"queue {key.queue}" if key.queue else "",
        f"{limits.requests_per_minute:,} requests/min" if limits.requests_per_minute else "",
        f"{limits.tokens_per_minute:,} tokens/min" if limits.tokens_per_minute else "",
        f"{used:,} of {f'{limits.tokens_per_day:,}' if limits.tokens_per_day else 'any'} tokens today",
        f"since {datetime.fromtimestamp(key.created_at, UTC).date()}",
    ]
    return "  ".join(part for part in parts if part)
