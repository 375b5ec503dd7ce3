"""The commands of `tokenmill bulk`, one file each."""

import click

from tokenmill.cli.bulk.export import export_command
from tokenmill.cli.bulk.limits import limits_command
from tokenmill.cli.bulk.resume import resume_command
from tokenmill.cli.bulk.retry_failed import retry_failed_command
from tokenmill.cli.bulk.run import run_command
from tokenmill.cli.bulk.status import status_command
from tokenmill.cli.bulk.stop import stop_command
from tokenmill.cli.bulk.submit import submit_command
from tokenmill.cli.bulk.watch import watch_command
from tokenmill.cli.bulk.worker import worker_command


@click.group()
def bulk() -> None:
    """Run a model over a dataset: rows in, the same rows with completions out."""


COMMANDS = (
    run_command,
    submit_command,
    status_command,
    watch_command,
    stop_command,
    resume_command,
    retry_failed_command,
    export_command,
    limits_command,
    worker_command,
)
for command in COMMANDS:
    bulk.add_command(command)
