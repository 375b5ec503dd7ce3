"""What RQ calls for a run, by this name: finds the execution that the bulk worker has prepared. Knows no rows."""

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenmill.bulk.jobs.execution import RunExecution

TASK = "tokenmill.bulk.jobs.task.execute_run"

current_execution: ContextVar["RunExecution"] = ContextVar("current_execution")


def execute_run(spec: dict[str, Any]) -> Any:
    """RuntimeError: the worker is none of ours, so nobody holds the run's lease."""
    execution = current_execution.get(None)
    if execution is None:
        raise RuntimeError("a run of tokenmill needs `tokenmill bulk worker`: a plain `rq worker` cannot execute it")
    return execution.perform(spec)
