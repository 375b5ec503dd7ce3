"""`tokenmill bulk status`: how runs stand, one or all. Knows no rows."""

import json
from pathlib import Path

import click

from tokenmill.cli.bulk.board import board_options, details_of, line_of, open_board
from tokenmill.cli.exits import with_exit_codes
from tokenmill.cli.options import json_option

DEFAULT_LIMIT = 30  # runs shown: a screen


@click.command(
    "status",
    help=with_exit_codes(
        """Show how a run stands, by its id or its output file; without one, all runs, the newest first.

        \b
        tokenmill bulk status
        tokenmill bulk status answers.jsonl
        tokenmill bulk status --json | jq '.runs[] | select(.state == "failed")'

        A run is scheduled, waiting (its tenant has as many running as it may), queued, running, lost (its worker died;
        another one takes it within seconds), done, failed or stopped.
        """,
        "0 shown, 1 no such run, 2 wrong usage, 3 no server",
    ),
)
@click.argument("run", metavar="[RUN|OUT]", required=False)
@click.option("--limit", type=click.IntRange(min=1), default=DEFAULT_LIMIT, show_default=True, metavar="N")
@board_options
@json_option
def status_command(
    run: str | None, limit: int, redis_url: str, rq_url: str | None, files: Path | None, as_json: bool
) -> None:
    with open_board(redis_url, rq_url) as board:
        if run is None:
            runs = board.all_runs()
            shown = [status.describe() for status in runs[:limit]]
            lines = [line_of(status) for status in runs[:limit]] or ["no runs"]
            if len(runs) > limit:
                lines.append(f"... and {len(runs) - limit} older ones: --limit {len(runs)}")
            click.echo(json.dumps({"total": len(runs), "runs": shown}) if as_json else "\n".join(lines))
            return
        status = board.status(board.id_of(run, files))
    click.echo(json.dumps(status.describe()) if as_json else "\n".join([line_of(status), *details_of(status)]))
