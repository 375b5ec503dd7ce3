"""`tokenmill bulk resume`: a run that ended goes on. Knows no rows."""

from pathlib import Path

import click

from tokenmill.cli.bulk.board import board_options, open_board, run_argument
from tokenmill.cli.exits import with_exit_codes


@click.command(
    "resume",
    help=with_exit_codes(
        """Queue a run again that was stopped, failed, or ended with failed rows: it does what is missing.

        \b
        tokenmill bulk resume answers.jsonl

        Rows that are done are not done again, and rows that were added to the input meanwhile are.
        """,
        "0 queued, 1 no such run, 2 it has not ended, or wrong usage, 3 no server",
    ),
)
@run_argument
@board_options
def resume_command(run: str, redis_url: str, rq_url: str | None, files: Path | None) -> None:
    with open_board(redis_url, rq_url) as board:
        run_id = board.id_of(run, files)
        board.resume(run_id)
    click.echo(run_id)
