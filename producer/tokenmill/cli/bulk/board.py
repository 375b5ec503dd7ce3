"""What the commands on runs that RQ carries share: their options, and how a run looks as text. Knows no rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tokenmill.bulk.progress import Pace, Tally, describe
from tokenmill.cli.exits import Exit, fail
from tokenmill.cli.options import redis_option

if TYPE_CHECKING:
    from tokenmill.bulk.jobs.board import RunBoard, RunStatus

Function = TypeVar("Function", bound=Callable[..., Any])

rq_redis_option = click.option(
    "--rq-redis",
    "rq_url",
    metavar="URL",
    envvar="TOKENMILL_RQ_REDIS_URL",
    show_envvar=True,
    help="Where the runs themselves are queued, when --redis is a cluster. Any but a cluster; default: --redis.",
)
files_option = click.option(
    "--files",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    envvar="TOKENMILL_FILES",
    show_envvar=True,
    help="The folder that submitters and bulk workers share; no run touches a file outside of it.",
)
run_argument = click.argument("run", metavar="RUN|OUT")


def board_options(function: Function) -> Function:
    """`redis_url`, `rq_url`, `files`."""
    return redis_option(rq_redis_option(files_option(function)))


def needs_rq() -> None:
    """Ends the command when RQ is not installed."""
    if find_spec("rq") is None:
        fail("this command needs rq: pip install 'tokenmill[bulk]'", Exit.USAGE)


@contextmanager
def open_board(redis_url: str, rq_url: str | None) -> "Iterator[RunBoard]":
    needs_rq()
    from tokenmill.bulk.jobs.board import RunBoard

    with RunBoard(rq_url or redis_url) as board:
        yield board


def tally_of(status: "RunStatus") -> Tally:
    """Of a run that ended: its report's, for one with nothing to do told no progress."""
    told = {**status.progress, **(status.report or {})}
    return Tally(
        num_rows=_integer(told.get("num_rows")),
        num_skipped=_integer(told.get("num_skipped")),
        num_done=_integer(told.get("num_done")),
        num_failed=_integer(told.get("num_failed")),
        prompt_tokens=_integer(told.get("prompt_tokens")),
        cached_tokens=_integer(told.get("cached_tokens")),
        completion_tokens=_integer(told.get("completion_tokens")),
    )


def pace_of(status: "RunStatus") -> Pace:
    told = status.progress
    eta_s = told.get("eta_s")
    return Pace(_number(told.get("rows_per_s")), _number(told.get("tokens_per_s")), _number(eta_s) if eta_s else None)


def line_of(status: "RunStatus") -> str:
    """A run in one line."""
    state = "stopping" if status.is_stopping else status.state
    parts = [status.run_id, state]
    if tally_of(status).num_rows:
        parts.append(_numbers_of(status))
    if status.due:
        parts.append(f"due {status.due}")
    parts.append(f"{', '.join(status.paths)} -> {status.out}")
    return "  ".join(parts)


def details_of(status: "RunStatus") -> list[str]:
    """What a person wants to know besides."""
    named = {
        "tenant": status.tenant,
        "worker": status.worker,
        "submitted": status.submitted,
        "ended": status.ended,
        "note": status.note if not status.is_final else None,
        "error": status.error,
        "errors in": (status.report or {}).get("errors"),
    }
    return [f"  {name:<10} {value}" for name, value in named.items() if value]


def exit_of(status: "RunStatus") -> Exit:
    """Of a run that ended."""
    return Exit.OK if status.state == "done" and not status.num_failed else Exit.FAILED


def _numbers_of(status: "RunStatus") -> str:
    tally = tally_of(status)
    if status.state == "running":
        return describe(tally, pace_of(status))
    failed = f", {tally.num_failed} failed" if tally.num_failed else ""
    return f"{tally.num_settled}/{tally.num_rows} rows{failed}"


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
