"""`tokenmill bulk run`: puts a run together from its options, shows it, and tells how it ended. Knows no rows."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from tokenmill.bulk.connection import QueueConnection
from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.output import OutputError, OutputFile
from tokenmill.bulk.partitioned import PartitionedQueue, connect_queue
from tokenmill.bulk.planner import RunPlan
from tokenmill.bulk.progress import ProgressView, SilentView, choose_view, format_duration
from tokenmill.bulk.prompts import TemplateError, make_renderer
from tokenmill.bulk.rows import InputError
from tokenmill.bulk.run import BulkRun, RequestQueue, RunReport
from tokenmill.cli.exits import Exit, Terminated, fail, with_exit_codes
from tokenmill.cli.hints import lacks_chat_template, warn_when_nobody_works
from tokenmill.cli.local import LOCAL_QUEUE, LocalWorkerError, local_worker
from tokenmill.cli.options import json_option, queue_options, sampling_of, sampling_options
from tokenmill.cli.screens import can_redraw
from tokenmill.client import Client

DEFAULT_WINDOW = 256  # four workers' worth of 64 rows: none of them waits for this process


@click.group()
def bulk() -> None:
    """Run a model over a dataset: rows in, the same rows with completions out."""


@bulk.command(
    "run",
    help=with_exit_codes(
        """Generate a completion for every row of INPUT (.jsonl, .ndjson, .csv, .tsv) and write it to --out (JSONL).

        \b
        tokenmill bulk run questions.jsonl --column question --out answers.jsonl --local --model smollm2
        tokenmill bulk run rows.csv --template "Translate into French: {{ text }}" --out done.jsonl

        A row's prompt is its `messages` or `prompt` column, or what --column or --template say. Each line of the
        output has custom_id (the row's custom_id or id, else a hash), input (the row), text, token_ids,
        finish_reason and usage. Rows that fail go to a file beside it, out.errors.jsonl, with the reason.

        Stopped in any way, even by kill -9, the same command does only what is missing: rows are known by their
        content, so the input may have been edited meanwhile. Other settings for the same --out are refused.
        """,
        "0 every row is done, 1 some rows failed, 2 wrong usage, 3 no server, 130 interrupted, 143 terminated",
    ),
)
@click.argument("input_path", metavar="INPUT", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out",
    required=True,
    metavar="OUT",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the rows go, as JSONL.",
)
@queue_options
@click.option("--local", "is_local", is_flag=True, help="Start a server and a worker here, for this run only.")
@click.option(
    "--model", metavar="M", help="With --local: what to load (default smollm2). Else: a name the queue serves."
)
@click.option("--dtype", metavar="D", help="With --local: auto, bfloat16 or float32.")
@click.option("--max-num-seqs", type=click.IntRange(min=1), metavar="N", help="With --local: rows in one batch.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N rows of the input.")
@click.option("--column", metavar="C", help="The column that holds the prompt.")
@click.option("--template", metavar="T", help="A Jinja2 template over the row's columns; @FILE reads it from a file.")
@click.option("--raw", "is_raw", is_flag=True, help="Send the prompt as it is, without the model's chat template.")
@sampling_options
@click.option(
    "--order",
    type=click.Choice(["input", "completion"]),
    default="input",
    show_default=True,
    help="Of the finished file; while it grows, rows are in the order in which they finish.",
)
@click.option("--window", type=click.IntRange(min=1), default=DEFAULT_WINDOW, show_default=True, help="Rows in flight.")
@json_option
def run_command(**options: Any) -> None:
    _check(options)
    with _exits(options), OutputFile(options["out"], _recipe(options)) as output, ExitStack() as stack:
        view = SilentView() if options["as_json"] else choose_view(sys.stderr, can_redraw=can_redraw(sys.stderr))
        run = BulkRun(_plan(options), output, _connector(options, output, view, stack), view)
        report = run.run()
    _tell(report, as_json=options["as_json"])
    if report.num_failed:
        raise click.exceptions.Exit(Exit.FAILED)


def _check(options: dict[str, Any]) -> None:
    if options["column"] is not None and options["template"] is not None:
        raise click.UsageError("--column and --template exclude each other")
    if not options["is_local"]:
        for name in ("dtype", "max_num_seqs"):
            if options[name] is not None:
                raise click.UsageError(f"--{name.replace('_', '-')} is for the worker that --local starts")
    if options["input_path"].resolve() == options["out"].resolve():
        raise click.UsageError("INPUT and --out are the same file")


def _recipe(options: dict[str, Any]) -> Recipe:
    return Recipe(
        column=options["column"],
        template=_template(options["template"]),
        is_raw=options["is_raw"],
        model=_local_model(options) if options["is_local"] else options["model"],
        dtype=options["dtype"],
        sampling=sampling_of(options),
    )


def _local_model(options: dict[str, Any]) -> str:
    return str(options["model"] or "smollm2")


def _template(template: str | None) -> str | None:
    if template is None or not template.startswith("@"):
        return template
    try:
        return Path(template[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--template {template}: {error}") from error


def _plan(options: dict[str, Any]) -> RunPlan:
    recipe = _recipe(options)
    return RunPlan(
        input_path=options["input_path"],
        recipe=recipe,
        make_prompt=make_renderer(column=recipe.column, template=recipe.template, is_raw=recipe.is_raw),
        limit=options["limit"],
        window=options["window"],
        order=options["order"],
    )


def _connector(
    options: dict[str, Any], output: OutputFile, view: ProgressView, stack: ExitStack
) -> Callable[[], RequestQueue]:
    """What opens the connection (and starts the local worker) once a row is found missing."""

    partitions = options["partitions"]

    def connect() -> RequestQueue:
        if not options["is_local"]:
            url, queue = options["redis_url"], options["queue"]
            _look_at_queue(url, queue, partitions, is_raw=options["is_raw"])
            return _entered(stack, connect_queue(url, queue, partitions, group=output.run_id))
        model = _local_model(options)
        view.note(f"starting a local worker with {model}")
        worker_options = {"--dtype": options["dtype"], "--max-num-seqs": options["max_num_seqs"]}
        folder = output.scratch("local")
        worker = stack.enter_context(local_worker(model, worker_options, partitions=partitions, folder=folder))
        worker.wait_ready()
        _look_at_queue(worker.url, LOCAL_QUEUE, partitions, is_raw=options["is_raw"])
        queue = connect_queue(worker.url, LOCAL_QUEUE, partitions, group=output.run_id, on_idle=worker.check)
        return _entered(stack, queue)

    return connect


def _entered(stack: ExitStack, queue: QueueConnection | PartitionedQueue) -> RequestQueue:
    stack.enter_context(queue)
    return queue


def _look_at_queue(url: str, queue: str, partitions: int, *, is_raw: bool) -> None:
    """Raw is part of what a row is known by, so it is asked for here and never taken silently."""
    with Client(url, queue, partitions) as client:
        statistics = client.statistics()
    warn_when_nobody_works(statistics)
    if lacks_chat_template(statistics) and not is_raw:
        fail("the model on this queue has no chat template: add --raw", Exit.USAGE)


@contextmanager
def _exits(options: dict[str, Any]) -> Iterator[None]:
    """Errors and signals as exit codes, with what to do next."""
    again = "run the same command again: only what is missing will be done"
    try:
        with _sigterm_as_terminated():
            yield
    except (OutputError, InputError, TemplateError) as error:
        fail(str(error), Exit.USAGE)
    except LocalWorkerError as error:
        fail(f"{error} (its log: {error.log})")
    except Terminated:
        fail(f"terminated; {again}", Exit.TERMINATED)
    except KeyboardInterrupt:
        fail(f"interrupted; {again}", Exit.INTERRUPTED)
    except OSError as error:
        fail(f"{error.filename or options['out']}: {error.strerror}; {again}")


@contextmanager
def _sigterm_as_terminated() -> Iterator[None]:
    def terminate(_signal: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(report: RunReport, *, as_json: bool) -> None:
    click.echo(json.dumps(report.describe()) if as_json else _summary(report))


def _summary(report: RunReport) -> str:
    if report.num_done == 0 and report.num_failed == 0:
        return f"already complete: nothing to do ({report.num_skipped} rows in {report.out})"
    parts = [f"{report.num_done} rows done in {format_duration(report.elapsed_s)}"]
    if report.num_skipped:
        parts.append(f"{report.num_skipped} were done before")
    if report.completion_tokens:
        parts.append(
            f"{report.completion_tokens:,} tokens, {report.completion_tokens / report.elapsed_s:,.0f} a second"
        )
    if report.num_failed:
        parts.append(f"{report.num_failed} failed: see {report.errors}")
    return f"{'; '.join(parts)} -> {report.out}"
