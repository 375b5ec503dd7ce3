"""`tokenmill bulk watch`: a run's progress until it ends. Knows no rows."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tokenmill.bulk.progress import ProgressView, SilentView, choose_view
from tokenmill.cli.bulk.board import board_options, details_of, exit_of, line_of, open_board, run_argument, tally_of
from tokenmill.cli.exits import Exit, fail, with_exit_codes
from tokenmill.cli.options import json_option
from tokenmill.cli.screens import can_redraw

if TYPE_CHECKING:
    from tokenmill.bulk.jobs.board import RunBoard, RunStatus

POLL_S = 0.5  # progress is told once a second


@click.command(
    "watch",
    help=with_exit_codes(
        """Show a run's progress until it ends, then how it ended; with the run's own exit code.

        \b
        tokenmill bulk watch answers.jsonl
        tokenmill bulk submit rows.jsonl --out done.jsonl | xargs tokenmill bulk watch

        Ctrl-C ends the watching, not the run.
        """,
        "0 every row is done, 1 some rows or the run failed, or it was stopped, 2 wrong usage, 3 no server, "
        "130 interrupted: the run goes on",
    ),
)
@run_argument
@board_options
@json_option
def watch_command(run: str, redis_url: str, rq_url: str | None, files: Path | None, as_json: bool) -> None:
    view = SilentView() if as_json else choose_view(sys.stderr, can_redraw=can_redraw(sys.stderr))
    with open_board(redis_url, rq_url) as board:
        try:
            status = follow(board, board.id_of(run, files), view)
        except KeyboardInterrupt:
            fail("interrupted; the run goes on", Exit.INTERRUPTED)
    click.echo(json.dumps(status.describe()) if as_json else "\n".join([line_of(status), *details_of(status)]))
    raise click.exceptions.Exit(exit_of(status))


def follow(board: "RunBoard", run_id: str, view: ProgressView) -> "RunStatus":
    """The run's last status. Notes are told as they change, numbers as they come."""
    status, told = board.status(run_id), ""
    view.start(tally_of(status))
    while not status.is_final:
        news = f"{status.state}: {status.note}" if status.note else status.state
        if news != told:
            view.note(news)
            told = news
        view.update(tally_of(status))
        time.sleep(POLL_S)
        status = board.status(run_id)
    view.stop(tally_of(status))
    return status
