"""`tokenmill bulk retry-failed`: the failed rows of a run again, and no others. Knows no rows."""

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from tokenmill.bulk.output import folder_of
from tokenmill.bulk.spec import QueueSpec, RunSpec, SpecError
from tokenmill.cli.bulk.board import files_option, open_board, rq_redis_option
from tokenmill.cli.bulk.options import local_options
from tokenmill.cli.bulk.run import carry_out, tell
from tokenmill.cli.exits import Exit, fail, with_exit_codes
from tokenmill.cli.options import json_option, queue_options


@click.command(
    "retry-failed",
    help=with_exit_codes(
        """Try the rows again that are in a run's errors file and are not bad themselves.

        \b
        tokenmill bulk retry-failed answers.jsonl            a run of the bulk workers is queued again
        tokenmill bulk retry-failed answers.jsonl --local    a run of `bulk run` is done here, with its own settings

        A row is bad, and left alone, when it cannot be read, makes no prompt, is too long or asks for what the model
        cannot do. Rows that never had their turn are left to `bulk resume`, or to the same `bulk run` again.
        """,
        "0 queued or done, 1 rows failed again or no such run, 2 wrong usage, 3 no server",
    ),
)
@click.argument("run", metavar="RUN|OUT")
@queue_options
@rq_redis_option
@files_option
@local_options
@json_option
def retry_failed_command(run: str, **options: Any) -> None:
    if _queue_again(run, options):
        return
    spec = _spec_beside(Path(run))
    if spec is None:
        fail(f"no run {run!r} here, and no file of a run by that name")
    spec = replace(
        spec,
        out=run,
        only_failed=True,
        queue=QueueSpec(name=options["queue"], partitions=options["partitions"]),
    )
    local = {**options, "model": options["model"] or spec.recipe.model}
    tell(carry_out(spec, local), spec, as_json=options["as_json"])


def _queue_again(run: str, options: Mapping[str, Any]) -> bool:
    """False: the bulk workers know no such run, so it is one of this machine."""
    if options["is_local"] or (Path(run).exists() and find_spec("rq") is None):
        return False
    from tokenmill.bulk.jobs.board import RunNotFoundError

    with open_board(options["redis_url"], options["rq_url"]) as board:
        try:
            run_id = board.id_of(run, options["files"])
        except RunNotFoundError:
            return False
        board.resume(run_id, only_failed=True)
    click.echo(json.dumps({"run": run_id}) if options["as_json"] else run_id)
    return True


def _spec_beside(out: Path) -> RunSpec | None:
    """What the run's manifest says that made this file."""
    try:
        manifest = json.loads((folder_of(out) / "manifest.json").read_bytes())
        return RunSpec.from_json(manifest["spec"])
    except (OSError, KeyError):
        return None
    except (ValueError, SpecError) as error:
        fail(f"{folder_of(out)}: {error}", Exit.USAGE)
