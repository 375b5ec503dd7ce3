"""`tokenmill bulk stop`: ends a run that RQ carries. Knows no rows."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tokenmill.cli.bulk.board import board_options, open_board, run_argument
from tokenmill.cli.exits import with_exit_codes
from tokenmill.wire.errors import UnavailableError

if TYPE_CHECKING:
    from tokenmill.bulk.jobs.board import RunBoard


@click.command(
    "stop",
    help=with_exit_codes(
        """Stop a run: what is in flight is cancelled, finished rows stay, `bulk resume` does the rest.

        \b
        tokenmill bulk stop answers.jsonl

        A run that waits will not begin. One that is running ends within about a second. Of one that is not, what a
        killed execution left on the queue is cancelled, too.
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
        num_cancelled = _cancel_leftovers(board, run_id, redis_url)
    told = f", {num_cancelled} requests cancelled" if num_cancelled else ""
    click.echo(f"{run_id} {'stops' if is_stopping else 'is over already'}{told}")


def _cancel_leftovers(board: "RunBoard", run_id: str, redis_url: str) -> int:
    """Whoever executes a run cancels its requests; else we do."""
    if board.status(run_id).state == "running":
        return 0
    try:
        return board.cancel_leftovers(run_id, redis_url)
    except UnavailableError as error:
        click.echo(f"tokenmill: what it may have left on its queue was not cancelled: {error}", err=True)
        return 0
