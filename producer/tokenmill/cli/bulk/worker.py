"""`tokenmill bulk worker`: puts the process together that executes runs. Knows no rows."""

from pathlib import Path

import click

from tokenmill.cli.bulk.board import board_options, needs_rq
from tokenmill.cli.exits import Exit, fail, with_exit_codes
from tokenmill.cli.options import DURATION

DEFAULT_LEASE_S = 15.0


@click.command(
    "worker",
    help=with_exit_codes(
        """Execute the runs that `bulk submit` queues, one at a time, until SIGTERM. No model is loaded here.

        \b
        tokenmill bulk worker --redis redis://localhost:6379/0 --files /data

        It is an RQ worker (`rq info` shows it). Start as many as runs shall go on at once. A run whose bulk worker was
        killed is taken by another one when its lease has run out; SIGTERM hands the run back at once.
        """,
        "0 ended by SIGTERM or --burst, 2 wrong usage, 3 the server went away",
    ),
)
@board_options
@click.option("--burst", is_flag=True, help="End when no run is queued.")
@click.option(
    "--lease",
    "lease_s",
    type=DURATION,
    metavar="DURATION",
    envvar="TOKENMILL_RUN_LEASE_S",
    default=DEFAULT_LEASE_S,
    show_default=True,
    show_envvar=True,
    help="Silence after which another worker takes a run.",
)
def worker_command(redis_url: str, rq_url: str | None, files: Path | None, burst: bool, lease_s: float) -> None:
    needs_rq()
    from tokenmill.bulk.jobs.serve import serve

    if not serve(redis_url, rq_url or redis_url, files=files, lease_s=lease_s, is_burst=burst):
        fail("the server went away", Exit.NO_SERVER)
