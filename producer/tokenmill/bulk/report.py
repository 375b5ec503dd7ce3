"""The final report of a run: as a value, as JSON and as text. Knows no files and no queue."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal

from tokenmill.bulk.progress import format_duration
from tokenmill.bulk.rows import Fields

Ending = Literal["complete", "stopped", "too_many_errors", "interrupted", "no_server"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What became of a run. Done and failed rows are this run's; skipped ones were done before.

    `elapsed_s` is the time from the first row sent to the last one written; starting a local worker is not in it.
    `latency_s`: from sending a row to having its answer, at some percentiles of this run's rows. `ending`: with any but
    `complete` rows are missing, and the next run does them. `first_error`: why the first of the failed rows did.
    """

    num_rows: int
    num_skipped: int
    num_done: int
    num_failed: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    finish_reasons: dict[str, int]
    elapsed_s: float
    latency_s: dict[str, float] = field(default_factory=dict)
    started_at: str = ""
    out: str
    errors: str | None
    first_error: str | None = None
    ending: Ending = "complete"

    @property
    def is_stopped(self) -> bool:
        return self.ending == "stopped"

    @property
    def rows_per_s(self) -> float:
        return self.num_done / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.completion_tokens / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def num_missing(self) -> int:
        return self.num_rows - self.num_skipped - self.num_done - self.num_failed

    def describe(self) -> Fields:
        """As JSON."""
        rates: Fields = {"rows_per_s": round(self.rows_per_s, 3), "tokens_per_s": round(self.tokens_per_s, 1)}
        return {**asdict(self), **rates}


def as_text(report: RunReport) -> str:
    """A line for each thing that a person wants to know."""
    return "".join(f"{name:<12}{value}\n" for name, value in _lines(report))


def _lines(report: RunReport) -> Iterator[tuple[str, str]]:
    yield "output", report.out
    yield "ended", report.ending.replace("_", " ") + (f", started {report.started_at}" if report.started_at else "")
    yield "rows", _rows(report)
    yield "time", f"{format_duration(report.elapsed_s)}  ({report.rows_per_s:,.1f} rows/s)"
    yield "tokens", f"{report.prompt_tokens:,} prompt, {report.completion_tokens:,} completion"
    yield "throughput", f"{report.tokens_per_s:,.0f} tok/s"
    if report.prompt_tokens:
        yield "cache hits", f"{report.cached_tokens / report.prompt_tokens:.0%} of the prompt tokens"
    if report.finish_reasons:
        yield "finished", ", ".join(f"{reason} {num:,}" for reason, num in report.finish_reasons.items())
    if report.latency_s:
        yield "latency", ", ".join(f"{name} {seconds:,.2f} s" for name, seconds in report.latency_s.items())
    if report.errors is not None:
        yield "errors", f"{report.errors}  (the first: {report.first_error})"


def _rows(report: RunReport) -> str:
    counts = {
        "done": report.num_done,
        "done before": report.num_skipped,
        "failed": report.num_failed,
        "missing": report.num_missing,
    }
    told = ", ".join(f"{num:,} {name}" for name, num in counts.items() if num)
    return f"{report.num_rows:,}: {told or 'none'}"
