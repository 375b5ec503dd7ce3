"""One run from its spec to its report: the one path of `bulk run`, `--local` and the RQ job. Knows no command line."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from tokenmill.bulk.fingerprint import fingerprints
from tokenmill.bulk.inputs.places import find_places
from tokenmill.bulk.inputs.resolve import resolve_input
from tokenmill.bulk.output import OutputFile, folder_of
from tokenmill.bulk.outputs import OutputPaths, RunRows, out_format_of, own_files, paths_of, write_output
from tokenmill.bulk.picture import draw
from tokenmill.bulk.progress import ProgressView
from tokenmill.bulk.recorder import Moment
from tokenmill.bulk.report import Ending, RunReport, as_text
from tokenmill.bulk.retry import begin_retry, end_retry
from tokenmill.bulk.rows import InputError
from tokenmill.bulk.run import BulkRun, RequestQueue
from tokenmill.bulk.spec import RunSpec
from tokenmill.wire.errors import UnavailableError

# From the run's id, which is its group on the queue; entered once, and only when a row is found missing.
QueueFactory: TypeAlias = Callable[[str], AbstractContextManager[RequestQueue]]

REPORT, TEXT, PICTURE = "report.json", "report.txt", "report.svg"  # in the output's folder


def never() -> bool:
    return False


def execute(
    spec: RunSpec, *, queue_factory: QueueFactory, view: ProgressView, should_stop: Callable[[], bool] = never
) -> RunReport:
    """Does what is missing. `should_stop` is asked at least twice a second; a run that it stops says so in its report.

    OutputError, InputError, TemplateError: nothing was done; UnavailableError, OSError: what was done is on disk.
    """
    spec = definite(spec)
    find_places(spec.input, exclude=own_files(Path(spec.out)))  # an input that is not there leaves no empty output
    out_format = out_format_of(spec)
    paths = paths_of(Path(spec.out), out_format)
    only = begin_retry(paths.out, paths.errors) if spec.only_failed else None
    with (
        OutputFile(paths.out, spec.recipe, path=paths.rows, errors_path=paths.errors) as output,
        ExitStack() as stack,
    ):

        def connect() -> RequestQueue:
            return stack.enter_context(queue_factory(output.run_id))

        if output.note_run(spec.to_json(), fingerprints(spec.input.paths)):
            view.note("the input has changed since the last run: only what is new in it is done")
        run = BulkRun(spec, output, connect, view, should_stop=should_stop, only=only)
        try:
            report = run.run()
        except (KeyboardInterrupt, UnavailableError) as error:
            ending: Ending = "interrupted" if isinstance(error, KeyboardInterrupt) else "no_server"
            _told(replace(run.report(), ending=ending), run, output, paths, view)
            raise
        if report.ending == "complete":
            end_retry(paths.out)  # also of a retry that was not finished: everything had its turn
            rows = RunRows(paths.rows, paths.errors, model=spec.recipe.model, created=output.created)
            write_output(rows, paths.out, out_format)
        return _told(report, run, output, paths, view)


def definite(spec: RunSpec) -> RunSpec:
    """As what its input turns out to be: stdin is kept on disk, an OpenAI Batch file recognised. InputError."""
    out, recipe = Path(spec.out), spec.recipe
    is_prompt_given = any(part is not None for part in (recipe.column, recipe.template, recipe.system))
    if is_prompt_given and spec.input.format == "openai":
        raise InputError("an OpenAI Batch file brings its own prompts: leave out --column, --template and --system")
    return replace(
        spec,
        input=resolve_input(spec.input, folder=folder_of(out), exclude=own_files(out), is_prompt_given=is_prompt_given),
    )


def _told(report: RunReport, run: BulkRun, output: OutputFile, paths: OutputPaths, view: ProgressView) -> RunReport:
    """In the user's names, and written down; a run with nothing to do keeps the reports of the one before it."""
    report = replace(report, out=str(paths.out), errors=report.errors and str(paths.out_errors))
    if run.timeline.moments or report.num_failed:
        _write_reports(output, report, run.timeline.moments, view)
    return report


def _write_reports(output: OutputFile, report: RunReport, moments: Sequence[Moment], view: ProgressView) -> None:
    try:
        output.write_beside(REPORT, json.dumps(report.describe(), indent=1) + "\n")
        output.write_beside(TEXT, as_text(report))
        output.write_beside(PICTURE, draw(report, moments))
    except OSError as error:  # the rows are safe, and they are what was asked for
        view.note(f"no report could be written: {error.strerror}")
