"""How far a run is, in numbers and on a screen. Knows no rows, files or queues: it is told, and it shows."""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, TextIO, TypeAlias

RATE_WINDOW_S = 20.0  # rates are those of the last moments: what a person sees change, and what is left follows
SAMPLE_INTERVAL_S = 0.5
LINE_INTERVAL_S = 5.0  # a plain line this often when there is news ...
STILL_INTERVAL_S = 60.0  # ... and this often when there is none: a log of a long run stays readable


@dataclass(slots=True)
class Tally:
    """Counts of one run. `num_skipped` rows were done by earlier runs; `window` bounds the rows in flight.

    `num_rows` is 0 while it is not known, `eta_s` None.
    """

    num_rows: int
    num_skipped: int = 0
    num_done: int = 0
    num_failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    num_in_flight: int = 0
    window: int = 0
    eta_s: float | None = None
    finish_reasons: Counter[str] = field(default_factory=Counter)

    @property
    def num_settled(self) -> int:
        return self.num_skipped + self.num_done + self.num_failed


@dataclass(frozen=True, slots=True)
class Pace:
    """Recent speed; `eta_s` None while nothing is known."""

    rows_per_s: float
    tokens_per_s: float
    eta_s: float | None


Sample: TypeAlias = tuple[float, int, int]  # time, rows settled by this run, completion tokens


class Pacemaker:
    """Turns a tally looked at now and then into a pace."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[Sample] = deque()

    def look(self, tally: Tally) -> Pace:
        now = _sample(self._clock(), tally)
        if not self._samples or now[0] - self._samples[-1][0] >= SAMPLE_INTERVAL_S:
            self._samples.append(now)
        while now[0] - self._samples[0][0] > RATE_WINDOW_S and len(self._samples) > 1:
            self._samples.popleft()
        pace = _pace(self._samples[0], now, num_left=max(0, tally.num_rows - tally.num_settled))
        return pace if tally.eta_s is None else replace(pace, eta_s=tally.eta_s)


def _sample(now_s: float, tally: Tally) -> Sample:
    return now_s, tally.num_done + tally.num_failed, tally.completion_tokens


def _pace(before: Sample, now: Sample, *, num_left: int) -> Pace:
    elapsed_s = now[0] - before[0]
    if elapsed_s <= 0:
        return Pace(0.0, 0.0, None)
    rows_per_s = (now[1] - before[1]) / elapsed_s
    eta_s = num_left / rows_per_s if rows_per_s > 0 else None
    return Pace(rows_per_s, (now[2] - before[2]) / elapsed_s, eta_s)


def describe(tally: Tally, pace: Pace | None) -> str:
    """One line: `12/64 rows  3.1 rows/s  210 tok/s  ETA 0:17  cache 40%  2 failed`."""
    parts = [f"{tally.num_settled}/{tally.num_rows} rows"]
    if pace is not None:
        parts += [f"{pace.rows_per_s:,.1f} rows/s", f"{pace.tokens_per_s:,.0f} tok/s"]
    if pace is not None and tally.num_settled < tally.num_rows:
        parts.append(f"ETA {format_duration(pace.eta_s)}")
    if tally.cached_tokens:
        parts.append(f"cache {tally.cached_tokens / tally.prompt_tokens:.0%}")
    if tally.num_failed:
        parts.append(f"{tally.num_failed} failed")
    return "  ".join(parts)


def format_duration(seconds: float | None) -> str:
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ProgressView(Protocol):
    """Shows a run to a person."""

    def start(self, tally: Tally) -> None: ...
    def update(self, tally: Tally) -> None: ...
    def note(self, message: str) -> None: ...
    def stop(self, tally: Tally) -> None: ...


class SilentView:
    """Shows nothing: `--json`, and tests."""

    def start(self, tally: Tally) -> None:
        """Nothing to show."""

    def update(self, tally: Tally) -> None:
        """Nothing to show."""

    def note(self, message: str) -> None:
        """Nothing to show."""

    def stop(self, tally: Tally) -> None:
        """Nothing to show."""


class LineView:
    """A plain line every few seconds, for logs and terminals that cannot redraw."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._pacemaker = Pacemaker(clock)
        self._last_s = clock()
        self._last_settled = 0
        self._start = _sample(self._last_s, Tally(num_rows=0))

    def start(self, tally: Tally) -> None:
        self._start = _sample(self._clock(), tally)
        if tally.num_rows:
            self._write(f"{tally.num_rows} rows")

    def update(self, tally: Tally) -> None:
        pace = self._pacemaker.look(tally)
        interval_s = LINE_INTERVAL_S if tally.num_settled > self._last_settled else STILL_INTERVAL_S
        if self._clock() - self._last_s >= interval_s:
            self._last_settled = tally.num_settled
            self._write(describe(tally, pace))

    def note(self, message: str) -> None:
        self._write(message)

    def stop(self, tally: Tally) -> None:
        """The last line has the rates of the whole; one who only saw the end knows none."""
        now = _sample(self._clock(), tally)
        pace = _pace(self._start, now, num_left=max(0, tally.num_rows - tally.num_settled))
        if tally.num_rows:
            self._write(describe(tally, pace if now[1] > self._start[1] else None))

    def _write(self, line: str) -> None:
        self._last_s = self._clock()
        self._stream.write(line + "\n")
        self._stream.flush()


class BarView:
    """A bar that redraws itself; needs rich and a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        columns = (SpinnerColumn(), BarColumn(bar_width=None), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=Console(stderr=True), expand=True)
        self._task = self._progress.add_task("", total=None)
        self._pacemaker = Pacemaker()

    def start(self, tally: Tally) -> None:
        self._progress.start()
        self.update(tally)

    def update(self, tally: Tally) -> None:
        line = describe(tally, self._pacemaker.look(tally))
        self._progress.update(self._task, completed=tally.num_settled, total=tally.num_rows, description=line)

    def note(self, message: str) -> None:
        self._progress.console.print(message, markup=False, highlight=False)

    def stop(self, tally: Tally) -> None:
        self.update(tally)
        self._progress.stop()


def choose_view(stream: TextIO, *, can_redraw: bool) -> ProgressView:
    """A bar where one can be drawn, plain lines elsewhere."""
    if not can_redraw:
        return LineView(stream)
    try:
        return BarView()
    except ModuleNotFoundError:  # rich comes with tokenmill[bulk]; a run without it is only less pretty
        return LineView(stream)
