"""`tokenmill bulk export`: the finished rows of a run, also while it goes on. Knows no queue."""

import os
import sys
from pathlib import Path
from typing import BinaryIO

import click

from tokenmill.bulk.output import OutputError, folder_of
from tokenmill.bulk.outputs import OUT_FORMATS, RunRows, out_format_of, rows_of, write_output
from tokenmill.bulk.rows import InputError
from tokenmill.bulk.spec import InputSpec, RunSpec
from tokenmill.cli.bulk.board import board_options, open_board, run_argument
from tokenmill.cli.exits import fail, with_exit_codes


@click.command(
    "export",
    help=with_exit_codes(
        """Write the rows that a run has finished so far to another file, or to stdout; the run is not disturbed.

        \b
        tokenmill bulk export answers.jsonl --to so-far.jsonl
        tokenmill bulk export answers.jsonl --to so-far.parquet
        tokenmill bulk export answers-1f2e3d4c --files /data --to - | wc -l

        The format is told by the name of --to, or by --format. A file is replaced as a whole: who reads it sees the
        rows of one moment.
        """,
        "0 written, 1 no such run or file, or it cannot be written, 2 wrong usage, 3 no server",
    ),
)
@run_argument
@click.option("--to", "target", required=True, metavar="FILE|-", help="Where they go; - is stdout, as JSONL.")
@click.option("--format", "out_format", type=click.Choice(OUT_FORMATS), help="By default as the name of --to says.")
@board_options
def export_command(
    run: str, target: str, out_format: str | None, redis_url: str, rq_url: str | None, files: Path | None
) -> None:
    out = Path(run) if folder_of(Path(run)).exists() else _out_of(run, redis_url, rq_url, files)
    try:
        if target == "-":
            _copy_lines(rows_of(out).rows, sys.stdout.buffer)
        else:
            _write(rows_of(out), Path(target), out_format)
    except OSError as error:
        is_draft = str(error.filename).endswith(".new")  # a name of ours, which would tell the user nothing
        fail(f"{target if is_draft else error.filename or target}: {error.strerror}")
    except (OutputError, InputError) as error:
        fail(str(error))


def _write(rows: RunRows, target: Path, out_format: str | None) -> None:
    out_format = out_format_of(RunSpec(input=InputSpec(paths=()), out=str(target), out_format=out_format))
    if target.exists() and target.samefile(rows.rows):
        raise click.UsageError("--to is the run's own file")
    if out_format == "jsonl":
        _replace(rows.rows, target)
    else:
        write_output(rows, target, out_format)
    click.echo(f"tokenmill: what is done so far -> {target}", err=True)


def _out_of(run: str, redis_url: str, rq_url: str | None, files: Path | None) -> Path:
    """Where this machine sees a run's output."""
    with open_board(redis_url, rq_url) as board:
        out = board.status(board.id_of(run, files)).out
    return (files or Path()) / out


def _replace(source: Path, target: Path) -> None:
    draft = target.with_name(f".{target.name}.new")
    with draft.open("wb") as file:
        _copy_lines(source, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, target)


def _copy_lines(source: Path, target: BinaryIO) -> None:
    """Whole lines alone."""
    with source.open("rb") as file:
        target.writelines(line for line in file if line.endswith(b"\n"))
    target.flush()
