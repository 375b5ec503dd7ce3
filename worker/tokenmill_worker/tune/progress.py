"""How far a tuning is, on stderr: a bar where rich is installed and somebody looks, else a line a measurement."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import click

from tokenmill_worker.tune.budget import Budget
from tokenmill_worker.tune.figures import Figures
from tokenmill_worker.tune.space import Point


class Progress(Protocol):
    def __call__(self, stage: str, point: Point, figures: Figures) -> None: ...


def line(stage: str, point: Point, figures: Figures) -> str:
    return (
        f"{stage}: {point}: {figures.tokens_per_s:.0f} tok/s, "
        f"{figures.token_p50_ms:.1f} ms a token (p99 {figures.token_p99_ms:.1f})"
    )


@contextmanager
def shown(budget: Budget, *, is_terminal: bool) -> Iterator[Progress]:
    bar = _bar() if is_terminal else None
    if bar is None:
        yield lambda stage, point, figures: click.echo(
            f"{budget.spent_s:5.0f} s  {line(stage, point, figures)}", err=True
        )
        return
    with bar(budget) as progress:
        yield progress


def _bar() -> "Callable[[Budget], _Bar] | None":
    try:
        import rich.progress  # noqa: F401  # an extra of bulk runs; without it there are lines
    except ImportError:
        return None
    return _Bar


class _Bar:
    """The share of the time that is spent, and the last measurement beside it."""

    def __init__(self, budget: Budget) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._budget = budget
        self._bar = Progress(
            BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"), console=Console(stderr=True)
        )
        self._task = self._bar.add_task("filling the batch", total=budget.spent_s + budget.left_s)

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, stage: str, point: Point, figures: Figures) -> None:
        self._bar.update(self._task, completed=self._budget.spent_s, description=line(stage, point, figures))
