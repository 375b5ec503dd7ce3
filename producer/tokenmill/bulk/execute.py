"""One run from its spec to its report: the one path of `bulk run`, `--local` and the RQ job. Knows no command line."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeAlias

from tokenmill.bulk.output import OutputFile
from tokenmill.bulk.progress import ProgressView
from tokenmill.bulk.run import BulkRun, RequestQueue, RunReport
from tokenmill.bulk.spec import RunSpec

# From the run's id, which is its group on the queue; entered once, and only when a row is found missing.
QueueFactory: TypeAlias = Callable[[str], AbstractContextManager[RequestQueue]]


def never() -> bool:
    return False


def execute(
    spec: RunSpec, *, queue_factory: QueueFactory, view: ProgressView, should_stop: Callable[[], bool] = never
) -> RunReport:
    """Does what is missing. `should_stop` is asked at least twice a second; a run that it stops says so in its report.

    OutputError, InputError, TemplateError: nothing was done; UnavailableError, OSError: what was done is on disk.
    """
    with OutputFile(Path(spec.out), spec.recipe) as output, ExitStack() as stack:

        def connect() -> RequestQueue:
            return stack.enter_context(queue_factory(output.run_id))

        return BulkRun(spec, output, connect, view, should_stop=should_stop).run()
