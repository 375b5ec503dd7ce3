"""`tokenmill dead`: look at what could not be answered, ask it again, or throw it away. Knows no server command."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from tokenmill.cli.exits import fail, with_exit_codes
from tokenmill.cli.options import DURATION, json_option, queue_options
from tokenmill.client import Client
from tokenmill.mailbox import Mailbox, redrive
from tokenmill.wire.store.letters import DeadLetter

DEFAULT_LIMIT = 50  # letters shown: a screen; the newest, because they tell of what is wrong now


class Selection:
    """Which letters a command is about: the named ones, or all, or those that fit."""

    def __init__(self, letter_ids: Sequence[str], *, is_all: bool, reason: str = "", older_than_s: float = 0.0) -> None:
        if is_all == bool(letter_ids) and not ((reason or older_than_s) and not is_all):
            raise click.UsageError("name letters by their ENTRY-ID, or say --all")
        self._letter_ids = letter_ids
        self._reason = reason
        self._older_than_s = older_than_s

    def of(self, mailbox: Mailbox) -> list[DeadLetter]:
        """Oldest first, as they were asked. Ends the command when a named one is not there."""
        letters = mailbox.letters()[::-1]
        missing = set(self._letter_ids) - {mailbox.name(letter) for letter in letters}
        if missing:
            fail(f"no such dead letter: {', '.join(sorted(missing))}")
        before_ms = mailbox.now_ms() - self._older_than_s * 1000
        named = [letter for letter in letters if self._is_meant(mailbox.name(letter), letter)]
        return [letter for letter in named if letter.time_ms <= before_ms]

    def _is_meant(self, name: str, letter: DeadLetter) -> bool:
        is_named = not self._letter_ids or name in self._letter_ids
        return is_named and letter.reason.startswith(self._reason)


@click.group()
def dead() -> None:
    """Dead letters: entries that were no requests, and requests that took their workers down.

    \b
    tokenmill dead list
    tokenmill dead redrive --all
    tokenmill dead purge --older-than 7d
    """


letter_ids_argument = click.argument("letter_ids", metavar="[ENTRY-ID]...", nargs=-1)


@dead.command(
    "list",
    help=with_exit_codes(
        """Show dead letters, the newest first: entry id, time, request id, lane, size and reason.

        \b
        tokenmill dead list
        tokenmill dead list --json --limit 1000 | jq -r '.letters[].reason'

        What was asked is private and is not shown, unless --show-body asks for it.
        """,
        "0 shown, 2 wrong usage, 3 no server",
    ),
)
@click.option("--limit", type=click.IntRange(min=1), default=DEFAULT_LIMIT, show_default=True, metavar="N")
@click.option("--show-body", "is_body_shown", is_flag=True, help="Also show what was asked.")
@queue_options
@json_option
def list_command(redis_url: str, queue: str, partitions: int, limit: int, is_body_shown: bool, as_json: bool) -> None:
    with Mailbox(redis_url, queue, partitions) as mailbox:
        total, letters = mailbox.count(), mailbox.letters(limit)
    shown = [_shown(mailbox.name(letter), letter, with_body=is_body_shown) for letter in letters]
    if as_json:
        click.echo(json.dumps({"queue": queue, "total": total, "letters": shown}))
        return
    click.echo("\n".join([f"queue {queue}: {total} dead letters", *map(_line, shown)]))
    if total > len(shown):
        click.echo(f"... and {total - len(shown)} older ones: --limit {total}")


def _shown(name: str, letter: DeadLetter, *, with_body: bool) -> dict[str, Any]:
    time = datetime.fromtimestamp(letter.time_ms / 1000, UTC).isoformat(timespec="seconds")
    head = {"entry_id": name, "time": time, "id": letter.request_id, "lane": letter.lane}
    tail = {"num_bytes": letter.num_bytes, "reason": letter.reason}
    return {**head, **tail, **({"body": _payload(letter)} if with_body else {})}


def _payload(letter: DeadLetter) -> Any:
    if letter.body is not None:
        return letter.body.decode("utf-8", "backslashreplace")
    return {_readable(name): _readable(value) for name, value in letter.fields.items()} or None


def _readable(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _line(shown: dict[str, Any]) -> str:
    line = f"  {shown['entry_id']}  {shown['time']}  {shown['id']}  lane {shown['lane']}  {shown['num_bytes']} bytes"
    line = f"{line}  {_printable(shown['reason'])}"
    return f"{line}\n    {json.dumps(shown['body'], ensure_ascii=False)}" if "body" in shown else line


def _printable(text: str) -> str:
    """A producer chose some of these words: none may move the cursor of who reads them."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


@dead.command(
    "redrive",
    help=with_exit_codes(
        """Ask again what dead letters tell of, each under a new id: ID~1, or the first that is free.

        \b
        tokenmill dead redrive 1795420810438-0
        tokenmill dead redrive --all
        tokenmill dead redrive --reason worker_crashed

        A letter goes once its request is accepted. One that carries no request (it was never a valid one)
        stays, and is named: its producer has to ask again.
        """,
        "0 all are asked again, 1 some could not be, 2 wrong usage, 3 no server",
    ),
)
@letter_ids_argument
@click.option("--all", "is_all", is_flag=True, help="All of them.")
@click.option("--reason", default="", metavar="PREFIX", help="Only those whose reason begins so.")
@queue_options
@json_option
def redrive_command(
    redis_url: str,
    queue: str,
    partitions: int,
    letter_ids: tuple[str, ...],
    is_all: bool,
    reason: str,
    as_json: bool,
) -> None:
    selection = Selection(letter_ids, is_all=is_all, reason=reason)
    num_kept = 0
    with Mailbox(redis_url, queue, partitions) as mailbox, Client(redis_url, queue, partitions) as client:
        for letter in selection.of(mailbox):
            outcome = redrive(mailbox, client, letter)
            num_kept += outcome["new_id"] is None
            click.echo(json.dumps(outcome) if as_json else _told(outcome))
    if num_kept:
        fail(f"{num_kept} dead letters stay: they cannot be asked again")


def _told(outcome: dict[str, str | None]) -> str:
    if outcome["new_id"] is None:
        return _printable(f"{outcome['entry_id']}  {outcome['id']} stays: {outcome['kept']}")
    return f"{outcome['entry_id']}  {outcome['id']} -> {outcome['new_id']}"


@dead.command(
    "purge",
    help=with_exit_codes(
        """Throw dead letters away for good; asks first, unless --yes.

        \b
        tokenmill dead purge 1795420810438-0
        tokenmill dead purge --older-than 7d --yes

        Nothing else changes: readers of these requests keep the final word that they got.
        """,
        "0 done, 1 not confirmed or no such letter, 2 wrong usage, 3 no server",
    ),
)
@letter_ids_argument
@click.option("--all", "is_all", is_flag=True, help="All of them.")
@click.option(
    "--older-than",
    "older_than_s",
    type=DURATION,
    default="0",
    metavar="DURATION",
    help="Only those that are older: 90s, 15m, 2h, 7d.",
)
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@queue_options
def purge_command(
    redis_url: str,
    queue: str,
    partitions: int,
    letter_ids: tuple[str, ...],
    is_all: bool,
    older_than_s: float,
    is_sure: bool,
) -> None:
    selection = Selection(letter_ids, is_all=is_all, older_than_s=older_than_s)
    with Mailbox(redis_url, queue, partitions) as mailbox:
        letters = selection.of(mailbox)
        if letters and not is_sure:
            click.confirm(f"throw {len(letters)} dead letters of queue {queue} away?", abort=True, err=True)
        num_removed = mailbox.remove(letters)
    click.echo(f"{num_removed} dead letters thrown away")
