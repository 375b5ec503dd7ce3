"""A run as an SVG picture: tokens a second and rows in flight over time, for light and dark screens. Pure."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple
from xml.sax.saxutils import escape

from tokenmill.bulk.progress import format_duration
from tokenmill.bulk.recorder import Moment
from tokenmill.bulk.report import RunReport

WIDTH, PANEL_HEIGHT, LEFT, RIGHT = 920, 150, 76, 24
TOPS = (96, 302)  # of the two panels
HEIGHT = 500
NUM_TICKS = 5
TIME_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400, 43_200)
MAX_TIMES = 8
MAX_BARS = 120  # throughput is averaged over this many spans of time at most: finer is noise

_STYLE = """
svg { background: #ffffff; font: 13px system-ui, sans-serif; }
text { fill: #4b5563; } .title { fill: #111827; font-size: 18px; font-weight: 600; } .name { fill: #111827; }
.grid { stroke: #e5e7eb; } .rate { fill: #2563eb; shape-rendering: crispEdges; }
.flight { fill: none; stroke: #b45309; stroke-width: 2; }
.window { fill: none; stroke: #6b7280; stroke-dasharray: 4 4; } .failed { fill: #b91c1c; }
@media (prefers-color-scheme: dark) {
  svg { background: #111827; }
  text { fill: #9ca3af; } .title, .name { fill: #f3f4f6; }
  .grid { stroke: #374151; } .rate { fill: #60a5fa; } .flight { stroke: #f59e0b; }
  .window { stroke: #9ca3af; } .failed { fill: #f87171; }
}
"""


class Panel(NamedTuple):
    """Maps seconds and values to points of the picture."""

    top: int
    longest_s: float
    largest: float

    def x(self, s: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * s / self.longest_s, 1)

    def y(self, value: float) -> float:
        return round(self.top + PANEL_HEIGHT * (1 - value / self.largest), 1)


class Span(NamedTuple):
    start_s: float
    end_s: float
    rate: float


def draw(report: RunReport, moments: Sequence[Moment]) -> str:
    """One self-contained SVG document; `moments` from the run's timeline."""
    longest_s = max((moment.s for moment in moments), default=0.0) or 1.0
    unit, spans = _throughput(moments)
    rate = Panel(TOPS[0], longest_s, nice_ceiling(max((span.rate for span in spans), default=0.0)))
    most_rows = max((max(moment.num_in_flight, moment.window) for moment in moments), default=0)
    flight = Panel(TOPS[1], longest_s, nice_ceiling(most_rows))
    parts = [
        *_title(report),
        *_axes(rate, unit),
        *(_bar(rate, span) for span in spans),
        *_axes(flight, "rows in flight (dashed: the most that were allowed)"),
        _line(flight, [(moment.s, moment.window) for moment in moments], "window"),
        _line(flight, [(moment.s, moment.num_in_flight) for moment in moments], "flight"),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n'
        f"<style>{_STYLE}</style>\n{body}\n</svg>\n"
    )


def nice_ceiling(value: float) -> float:
    """The next round number whose quarters are round too: a scale that can be read."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if power * step >= value * (1 - 1e-9))


def _throughput(moments: Sequence[Moment]) -> tuple[str, list[Span]]:
    """Tokens a second; rows a second of a run that counted no token."""
    has_tokens = any(moment.completion_tokens for moment in moments)
    kept = moments[:: max(1, math.ceil(len(moments) / MAX_BARS))]
    kept = kept if not moments or kept[-1] is moments[-1] else [*kept, moments[-1]]
    spans = [
        Span(before.s, now.s, (_amount(now, has_tokens) - _amount(before, has_tokens)) / (now.s - before.s))
        for before, now in pairwise(kept)
        if now.s > before.s
    ]
    return ("output tokens a second" if has_tokens else "rows a second"), spans


def _amount(moment: Moment, has_tokens: bool) -> int:
    return moment.completion_tokens if has_tokens else moment.num_done


def _title(report: RunReport) -> list[str]:
    figures = [
        f"{report.num_done:,} rows in {format_duration(report.elapsed_s)}",
        f"{report.rows_per_s:,.1f} rows/s",
        f"{report.tokens_per_s:,.0f} tok/s",
    ]
    if "p50" in report.latency_s:
        figures.append(f"a row takes {report.latency_s['p50']:,.2f} s (p99 {report.latency_s['p99']:,.2f} s)")
    failed = f' <tspan class="failed">{report.num_failed:,} failed</tspan>' if report.num_failed else ""
    return [
        f'<text class="title" x="{LEFT}" y="34">{escape(report.out.rpartition("/")[2])}</text>',
        f'<text x="{LEFT}" y="58">{escape(" · ".join(figures))}{failed}</text>',
    ]


def _axes(panel: Panel, name: str) -> list[str]:
    ticks = [panel.largest * number / (NUM_TICKS - 1) for number in range(NUM_TICKS)]
    times = time_ticks(panel.longest_s)
    digits = 0 if panel.largest >= 10 else 2
    bottom = panel.top + PANEL_HEIGHT
    return [
        f'<text class="name" x="{LEFT}" y="{panel.top - 12}">{escape(name)}</text>',
        *(f'<path class="grid" d="M{LEFT} {panel.y(tick)}H{WIDTH - RIGHT}"/>' for tick in ticks),
        *(
            f'<text x="{LEFT - 8}" y="{panel.y(tick) + 4}" text-anchor="end">{tick:,.{digits}f}</text>'
            for tick in ticks
        ),
        *(f'<text x="{panel.x(s)}" y="{bottom + 20}" text-anchor="middle">{_time(s)}</text>' for s in times),
    ]


def time_ticks(longest_s: float) -> list[float]:
    """From 0, at round distances, as many as there is room for."""
    step = next((step for step in TIME_STEPS_S if longest_s / step <= MAX_TIMES), math.ceil(longest_s / MAX_TIMES))
    return [step * number for number in range(int(longest_s / step) + 1)]


def _time(seconds: float) -> str:
    return format_duration(seconds) if seconds == round(seconds) else f"{seconds:.1f} s"


def _bar(panel: Panel, span: Span) -> str:
    x, y = panel.x(span.start_s), panel.y(max(span.rate, 0.0))
    width, height = round(panel.x(span.end_s) - x, 1), round(panel.y(0) - y, 1)
    return f'<rect class="rate" x="{x}" y="{y}" width="{width}" height="{height}"/>'


def _line(panel: Panel, points: Sequence[tuple[float, float]], style: str) -> str:
    if not points:
        return ""
    return f'<path class="{style}" d="M{" L".join(f"{panel.x(s)} {panel.y(value)}" for s, value in points)}"/>'
