"""`tokenmill bulk limits`: what each tenant may use, and what it has used today. Knows no rows."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenmill.cli.bulk.board import board_options, open_board
from tokenmill.cli.exits import with_exit_codes
from tokenmill.cli.options import json_option

if TYPE_CHECKING:
    from tokenmill.bulk.jobs.limits import LimitBook, Limits

_COUNT = click.IntRange(min=1)


@click.command(
    "limits",
    help=with_exit_codes(
        """Show or set what a tenant's runs may use. The tenant * stands for all that have no limits of their own.

        \b
        tokenmill bulk limits
        tokenmill bulk limits team-a --runs 2 --rows-per-day 100000 --tokens-per-day 20000000
        tokenmill bulk limits team-a --clear

        A run beyond --runs waits for a place. One whose tenant has used up its rows or tokens of the day (UTC; tokens
        of prompts and answers) pauses until the next day and goes on by itself. --runs holds for runs submitted later.
        """,
        "0 shown or set, 2 wrong usage, 3 no server",
    ),
)
@click.argument("tenant", required=False)
@click.option("--runs", type=_COUNT, metavar="N", help="Runs at once; the others wait.")
@click.option("--rows-per-day", type=_COUNT, metavar="N", help="Rows finished in a day.")
@click.option("--tokens-per-day", type=_COUNT, metavar="N", help="Tokens in a day.")
@click.option("--clear", "is_cleared", is_flag=True, help="The tenant has no limits of its own any more.")
@board_options
@json_option
def limits_command(
    tenant: str | None,
    runs: int | None,
    rows_per_day: int | None,
    tokens_per_day: int | None,
    is_cleared: bool,
    redis_url: str,
    rq_url: str | None,
    files: Path | None,
    as_json: bool,
) -> None:
    given = {"runs": runs, "rows_per_day": rows_per_day, "tokens_per_day": tokens_per_day}
    news = {name: value for name, value in given.items() if value is not None}
    if (news or is_cleared) and tenant is None:
        raise click.UsageError("name the TENANT whose limits these are")
    if news and is_cleared:
        raise click.UsageError("--clear and new limits exclude each other")
    with open_board(redis_url, rq_url) as board:
        if tenant is not None and (news or is_cleared):
            before = board.limits.all_limits().get(tenant) or _unlimited()
            board.limits.set_limits(tenant, None if is_cleared else replace(before, **news))
        shown = _shown(board.limits, tenant)
    click.echo(json.dumps(shown) if as_json else "\n".join(map(_line, shown)) or "no limits")


def _unlimited() -> "Limits":
    from tokenmill.bulk.jobs.limits import Limits

    return Limits()


def _shown(book: "LimitBook", tenant: str | None) -> list[dict[str, Any]]:
    every = book.all_limits()
    names = sorted(every) if tenant is None else [tenant]
    return [
        {"tenant": name, "limits": asdict(every.get(name) or _unlimited()), "used_today": asdict(book.usage_of(name))}
        for name in names
    ]


def _line(shown: dict[str, Any]) -> str:
    limits, used = shown["limits"], shown["used_today"]
    parts = [
        f"runs {_or_any(limits['runs'])}",
        f"rows {used['rows']:,} of {_or_any(limits['rows_per_day'])} today",
        f"tokens {used['tokens']:,} of {_or_any(limits['tokens_per_day'])} today",
    ]
    return f"{shown['tenant']}: {', '.join(parts)}"


def _or_any(limit: int | None) -> str:
    return "any" if limit is None else f"{limit:,}"
