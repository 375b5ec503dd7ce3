"""`tokenmill bulk export`: the finished rows of a run, also while it goes on. Knows no queue."""

import os
import sys
from pathlib import Path
from typing import BinaryIO

import click

from tokenmill.bulk.output import folder_of
from tokenmill.cli.bulk.board import board_options, open_board, run_argument
from tokenmill.cli.exits import fail, with_exit_codes


@click.command(
    "export",
    help=with_exit_codes(
        """Write the rows that a run has finished so far to another file, or to stdout; the run is not disturbed.

        \b
        tokenmill bulk export answers.jsonl --to so-far.jsonl
        tokenmill bulk export answers-1f2e3d4c --files /data --to - | wc -l

        A file is replaced as a whole: who reads it sees the rows of one moment. Half a line is never copied.
        """,
        "0 written, 1 no such run or file, or it cannot be written, 2 wrong usage, 3 no server",
    ),
)
@run_argument
@click.option("--to", "target", required=True, metavar="FILE|-", help="Where they go; - is stdout.")
@board_options
def export_command(run: str, target: str, redis_url: str, rq_url: str | None, files: Path | None) -> None:
    source = Path(run) if folder_of(Path(run)).exists() else _out_of(run, redis_url, rq_url, files)
    try:
        if target == "-":
            _copy_lines(source, sys.stdout.buffer)
            return
        num_rows = _replace(source, Path(target))
    except OSError as error:
        fail(f"{error.filename or target}: {error.strerror}")
    click.echo(f"{num_rows} rows -> {target}", err=True)


def _out_of(run: str, redis_url: str, rq_url: str | None, files: Path | None) -> Path:
    """Where this machine sees a run's output."""
    with open_board(redis_url, rq_url) as board:
        out = board.status(board.id_of(run, files)).out
    return (files or Path()) / out


def _replace(source: Path, target: Path) -> int:
    if target.exists() and target.samefile(source):
        raise click.UsageError("--to is the run's own file")
    draft = target.with_name(f".{target.name}.new")
    with draft.open("wb") as file:
        num_rows = _copy_lines(source, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, target)
    return num_rows


def _copy_lines(source: Path, target: BinaryIO) -> int:
    """Whole lines alone; how many."""
    num_rows = 0
    with source.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                target.write(line)
                num_rows += 1
    target.flush()
    return num_rows
