"""`tokenmill bulk run`: puts a run together from its options, shows it, and tells how it ended. Knows no rows."""

import json
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import click

from tokenmill.bulk.execute import PICTURE, QueueFactory, execute
from tokenmill.bulk.output import OutputError, folder_of, scratch_folder
from tokenmill.bulk.partitioned import connect_queue
from tokenmill.bulk.progress import ProgressView, SilentView, choose_view, format_duration
from tokenmill.bulk.prompts import TemplateError
from tokenmill.bulk.rehearsal import estimate, preview, with_tokens
from tokenmill.bulk.report import RunReport, as_text
from tokenmill.bulk.rows import InputError
from tokenmill.bulk.run import RequestQueue
from tokenmill.bulk.spec import QueueSpec, RunSpec
from tokenmill.cli.bulk.options import local_options, spec_of, spec_options
from tokenmill.cli.bulk.rehearse import has_workers, show_estimate, show_previews
from tokenmill.cli.exits import Exit, Terminated, fail, with_exit_codes
from tokenmill.cli.hints import lacks_chat_template, warn_when_nobody_works
from tokenmill.cli.local import LOCAL_QUEUE, LocalWorkerError, local_worker
from tokenmill.cli.options import json_option, queue_options
from tokenmill.cli.screens import can_redraw
from tokenmill.client import Client

AGAIN = "run the same command again: only what is missing will be done"


@click.command(
    "run",
    help=with_exit_codes(
        """Generate a completion for every row of INPUT and write it to --out, row by row.

        INPUT is one or more files (JSONL, CSV, Parquet, Arrow, OpenAI Batch), folders, globs or URLs, - for stdin, or
        hf://owner/name; --out ends in .jsonl, .parquet or .csv.

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
@spec_options
@queue_options
@local_options
@click.option(
    "--report",
    "report_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the final report here too: .json, .svg (a picture of the run), or else as text.",
)
@click.option(
    "--preview", type=click.IntRange(min=1), metavar="N", help="Only show the first N prompts, in tokens too."
)
@click.option(
    "--dry-run", "is_dry_run", is_flag=True, help="Only estimate tokens and time, from some rows that are really run."
)
@json_option
def run_command(**options: Any) -> None:
    _check(options)
    if options["preview"] is not None or options["is_dry_run"]:
        with TemporaryDirectory(prefix="tokenmill-") as folder:
            _rehearse({**options, "out": options["out"] or Path(folder) / "out" / "out.jsonl"}, Path(folder))
        return
    spec = spec_of(options, model=_local_model(options) if options["is_local"] else options["model"])
    report = carry_out(spec, options)
    tell(report, spec, as_json=options["as_json"])


def _rehearse(options: dict[str, Any], folder: Path) -> None:
    spec = spec_of(options, model=_local_model(options) if options["is_local"] else options["model"])
    can_ask = options["is_local"] or has_workers(options["redis_url"], spec.queue)

    def run(scratch: RunSpec) -> RunReport:
        is_silent = options["as_json"] or not options["is_dry_run"]
        return carry_out(scratch, {**options, "as_json": is_silent, "report_path": None})

    with _exits(spec):
        if options["is_dry_run"]:
            if not can_ask:
                fail("nobody works on this queue, and a dry run measures: start a worker, or add --local")
            show_estimate(estimate(spec, folder, run), as_json=options["as_json"])
        else:
            previews = preview(spec, options["preview"])
            show_previews(with_tokens(spec, previews, folder, run) if can_ask else previews, as_json=options["as_json"])


def carry_out(spec: RunSpec, options: Mapping[str, Any]) -> RunReport:
    """Executes a run in this process; whatever ends it early ends the command."""
    view = SilentView() if options["as_json"] else choose_view(sys.stderr, can_redraw=can_redraw(sys.stderr))
    with _exits(spec):
        report = execute(spec, queue_factory=_queue_factory(options, spec, view), view=view)
        if options.get("report_path") is not None:
            _write_report(report, options["report_path"])
    return report


def _write_report(report: RunReport, path: Path) -> None:
    picture = folder_of(Path(report.out)) / PICTURE
    if path.suffix == ".json":
        path.write_text(json.dumps(report.describe(), indent=1) + "\n", encoding="utf-8")
    elif path.suffix == ".svg" and picture.exists():  # the first run had nothing to do: there is nothing to draw
        shutil.copyfile(picture, path)
    else:
        path.write_text(as_text(report), encoding="utf-8")


def _check(options: dict[str, Any]) -> None:
    if not options["is_local"]:
        for name in ("dtype", "max_num_seqs"):
            if options[name] is not None:
                raise click.UsageError(f"--{name.replace('_', '-')} is for the worker that --local starts")


def _local_model(options: Mapping[str, Any]) -> str:
    return str(options["model"] or "smollm2")


def _queue_factory(options: Mapping[str, Any], spec: RunSpec, view: ProgressView) -> QueueFactory:
    """What opens the connection (and starts the local worker) once a row is found missing."""

    def connect(run_id: str) -> AbstractContextManager[RequestQueue]:
        if options["is_local"]:
            return _local_queue(options, spec, view, run_id)
        _look_at_queue(options["redis_url"], spec.queue, is_raw=spec.recipe.is_raw)
        return connect_queue(options["redis_url"], spec.queue.name, spec.queue.partitions, group=run_id)

    return connect


@contextmanager
def _local_queue(options: Mapping[str, Any], spec: RunSpec, view: ProgressView, run_id: str) -> Iterator[RequestQueue]:
    model = _local_model(options)
    view.note(f"starting a local worker with {model}")
    worker_options = {"--dtype": options["dtype"], "--max-num-seqs": options["max_num_seqs"]}
    folder = scratch_folder(Path(spec.out), "local")
    with local_worker(model, worker_options, partitions=spec.queue.partitions, folder=folder) as worker:
        worker.wait_ready()
        _look_at_queue(
            worker.url, QueueSpec(name=LOCAL_QUEUE, partitions=spec.queue.partitions), is_raw=spec.recipe.is_raw
        )
        with worker.connect_queue(run_id) as queue:
            yield queue


def _look_at_queue(url: str, queue: QueueSpec, *, is_raw: bool) -> None:
    """Raw is part of what a row is known by, so it is asked for here and never taken silently."""
    with Client(url, queue.name, queue.partitions) as client:
        statistics = client.statistics()
    warn_when_nobody_works(statistics)
    if lacks_chat_template(statistics) and not is_raw:
        fail("the model on this queue has no chat template: add --raw", Exit.USAGE)


@contextmanager
def _exits(spec: RunSpec) -> Iterator[None]:
    """Errors and signals as exit codes, with what to do next."""
    try:
        with _sigterm_as_terminated():
            yield
    except (OutputError, InputError, TemplateError) as error:
        fail(str(error), Exit.USAGE)
    except LocalWorkerError as error:
        fail(f"{error} (its log: {error.log})")
    except Terminated:
        fail(f"terminated; {AGAIN}", Exit.TERMINATED)
    except KeyboardInterrupt:
        fail(f"interrupted; {AGAIN}", Exit.INTERRUPTED)
    except OSError as error:
        fail(f"{error.filename or spec.out}: {error.strerror}; {AGAIN}")


@contextmanager
def _sigterm_as_terminated() -> Iterator[None]:
    def terminate(_signal: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def tell(report: RunReport, spec: RunSpec, *, as_json: bool) -> None:
    """How a run ended, and the exit code that says so."""
    click.echo(json.dumps(report.describe()) if as_json else _summary(report))
    if report.ending == "too_many_errors":
        fail(f"stopped: more than {spec.max_errors} rows failed, see {report.errors}; {AGAIN}")
    if report.num_failed:
        raise click.exceptions.Exit(Exit.FAILED)


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
        parts.append(f"{report.num_failed} failed: see {report.errors} (the first: {report.first_error})")
    return f"{'; '.join(parts)} -> {report.out}"
