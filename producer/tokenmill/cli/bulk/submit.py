"""`tokenmill bulk submit`: hands a run to the bulk workers. Knows no rows."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from tokenmill.bulk.spec import RunSpec
from tokenmill.cli.bulk.board import files_option, needs_rq, open_board, rq_redis_option
from tokenmill.cli.bulk.options import spec_of, spec_options
from tokenmill.cli.exits import Exit, fail, with_exit_codes
from tokenmill.cli.options import DURATION, json_option, queue_options


@click.command(
    "submit",
    help=with_exit_codes(
        """Queue a run for the bulk workers (`tokenmill bulk worker`) and return: the options of `bulk run`.

        \b
        tokenmill bulk submit questions.jsonl --column question --out answers.jsonl
        tokenmill bulk watch answers.jsonl

        It prints the run's id. One output file is one run: the same command again, while the run is on its way,
        answers with that run; after its end it starts it again, and what is done is not done again.
        """,
        "0 queued, or on its way already, 2 another run writes that file, or wrong usage, 3 no server",
    ),
)
@spec_options
@queue_options
@rq_redis_option
@files_option
@click.option("--model", metavar="M", help="A name that the queue serves.")
@click.option("--tenant", metavar="NAME", help="Whose run this is: limits hold for each tenant (`bulk limits`).")
@click.option("--at", "at", metavar="TIME", help="Queue it then: 2026-12-24T18:00, local time unless it says another.")
@click.option("--in", "delay_s", type=DURATION, metavar="DURATION", help="Queue it after 90s, 15m, 2h or 7d.")
@json_option
def submit_command(**options: Any) -> None:
    needs_rq()
    due = _due(options["at"], options["delay_s"])
    spec = replace(spec_of(options, model=options["model"]), tenant=options["tenant"])
    spec = _portable(spec, options)
    with open_board(options["redis_url"], options["rq_url"]) as board:
        run_id, is_new = board.submit(spec, at=due)
    if options["as_json"]:
        click.echo(json.dumps({"run": run_id, "is_new": is_new, "out": spec.out}))
        return
    click.echo(run_id)
    if not is_new:
        click.echo("tokenmill: this run was on its way already", err=True)


def _portable(spec: RunSpec, options: dict[str, Any]) -> RunSpec:
    from tokenmill.bulk.jobs.places import PlaceError, portable

    try:
        return portable(spec, options["files"])
    except PlaceError as error:
        fail(str(error), Exit.USAGE)


def _due(at: str | None, delay_s: float | None) -> datetime | None:
    if at is not None and delay_s is not None:
        raise click.UsageError("--at and --in exclude each other")
    if delay_s is not None:
        return datetime.now(UTC) + timedelta(seconds=delay_s)
    if at is None:
        return None
    try:
        return datetime.fromisoformat(at).astimezone(UTC)
    except ValueError as error:
        raise click.UsageError(f"--at {at}: no time: 2026-12-24T18:00 or 2026-12-24T18:00+01:00") from error
