"""`tokenmill bulk stop`: ends a run that RQ carries. Knows no rows."""

from pathlib import Path

import click

from tokenmill.cli.bulk.board import board_options, open_board, run_argument
from tokenmill.cli.exits import with_exit_codes


@click.command(
    "stop",
    help=with_exit_codes(
        """Stop a run: what is in flight is cancelled, finished rows stay, `bulk resume` does the rest.

        \b
        tokenmill bulk stop answers.jsonl

        A run that waits will not begin. One that is running ends within about a second.
        """,
        "0 it will stop, or is over already, 1 no such run, 2 wrong usage, 3 no server",
    ),
)
@run_argument
@board_options
def stop_command(run: str, redis_url: str, rq_url: str | None, files: Path | None) -> None:
    with open_board(redis_url, rq_url) as board:
        run_id = board.id_of(run, files)
        is_stopping = board.stop(run_id)
    click.echo(f"{run_id} {'stops' if is_stopping else 'is over already'}")
