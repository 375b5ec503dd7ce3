"""The commands of `tokenmill bulk`, one file each."""

import click

from tokenmill.cli.bulk.run import run_command


@click.group()
def bulk() -> None:
    """Run a model over a dataset: rows in, the same rows with completions out."""


bulk.add_command(run_command)
