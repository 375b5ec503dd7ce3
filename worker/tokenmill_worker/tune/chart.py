"""A chart of several series as one self-contained SVG, for light and dark screens. Pure; knows no figures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 92, 56
INKS = (("#2563eb", "#60a5fa"), ("#b45309", "#f59e0b"), ("#047857", "#34d399"), ("#7c3aed", "#c4b5fd"))
LABEL_ROOM = 6

_STYLE = """
svg { background: #ffffff; font: 13px system-ui, sans-serif; }
text { fill: #4b5563; } .title { fill: #111827; font-size: 17px; font-weight: 600; } .name { fill: #111827; }
.grid { stroke: #e5e7eb; } .mark { fill: none; stroke: #b91c1c; stroke-width: 2; }
.marked { fill: #b91c1c; paint-order: stroke; stroke: #ffffff; stroke-width: 4px; }
.limit { stroke: #b91c1c; stroke-dasharray: 5 4; }
.line { fill: none; stroke-width: 2; } .dashed { stroke-dasharray: 6 4; }
"""
_DARK = """
  svg { background: #111827; }
  text { fill: #9ca3af; } .title, .name { fill: #f3f4f6; }
  .grid { stroke: #374151; } .mark, .limit { stroke: #f87171; } .marked { fill: #f87171; stroke: #111827; }
"""


class Dot(NamedTuple):
    x: float
    y: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Dots that a line joins, in their order."""

    name: str
    dots: Sequence[Dot]
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A ring around a place, with a word below it at its side; or centred, below or above it, where fewer dots are."""

    dot: Dot
    text: str
    is_centred: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """`x_scale` log2: by powers of two; dots at 0 have no place there. `limits` are vertical lines (x, text)."""

    title: str
    subtitle: str = ""
    x_label: str
    y_label: str
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    limits: Sequence[tuple[float, str]] = ()
    x_scale: Literal["linear", "log2"] = "linear"
    x_ticks: Sequence[float] = field(default_factory=tuple)

    def svg(self) -> str:
        """The whole document."""
        area = _Area.of(self)
        series = [replace(one, dots=[dot for dot in one.dots if area.has(dot.x)]) for one in self.series]
        parts = [
            f'<text class="title" x="{LEFT}" y="28">{escape(self.title)}</text>',
            f'<text x="{LEFT}" y="48">{escape(self.subtitle)}</text>',
            *_legend(self.series),
            *area.grid(self.x_label, self.y_label),
            *(_limit(area, x, text) for x, text in self.limits if area.has(x)),
            *(_series(area, number, one) for number, one in enumerate(series)),
            *(_mark(area, mark, series) for mark in self.marks if area.has(mark.dot.x)),
        ]
        body = "\n".join(parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n'
            f"<style>{_style()}</style>\n{body}\n</svg>\n"
        )


class _Area(NamedTuple):
    """Maps values to places of the picture."""

    low: float
    high: float
    top: float
    is_log: bool
    ticks: Sequence[float]

    @classmethod
    def of(cls, chart: Chart) -> "_Area":
        is_log = chart.x_scale == "log2"
        xs = [dot.x for one in chart.series for dot in one.dots if dot.x > 0 or not is_log] or [1.0]
        ys = [dot.y for one in chart.series for dot in one.dots] or [1.0]
        if is_log:
            low, high = 2 ** math.floor(math.log2(min(xs))), 2 ** math.ceil(math.log2(max(xs)))
            high = max(high, 2 * low)
            ticks = chart.x_ticks or [low * 2**power for power in range(round(math.log2(high / low)) + 1)]
        else:
            low, high = 0.0, nice_ceiling(max(xs))
            ticks = chart.x_ticks or [high * number / 5 for number in range(6)]
        return cls(low, high, nice_ceiling(max(ys)), is_log, ticks)

    def has(self, x: float) -> bool:
        return self.low <= x <= self.high

    def x(self, value: float) -> float:
        share = (
            math.log2(value / self.low) / math.log2(self.high / self.low)
            if self.is_log
            else (value - self.low) / (self.high - self.low)
        )
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - value / self.top * (HEIGHT - TOP - BOTTOM), 1)

    def grid(self, x_label: str, y_label: str) -> list[str]:
        levels = [self.top * number / 5 for number in range(6)]
        bottom = HEIGHT - BOTTOM
        return [
            *(f'<path class="grid" d="M{LEFT} {self.y(level)}H{WIDTH - RIGHT}"/>' for level in levels),
            *(f'<path class="grid" d="M{self.x(tick)} {bottom}v5"/>' for tick in self.ticks),
            *(_text(LEFT - 8, self.y(level) + 4, f"{level:,.4g}", anchor="end") for level in levels),
            *(_text(self.x(tick), bottom + 20, f"{tick:,.4g}") for tick in self.ticks),
            _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_label, style="name"),
            _text(LEFT, TOP - 10, y_label, anchor="start", style="name"),
        ]


def nice_ceiling(value: float) -> float:
    """The next round number whose fifths are round too."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7.5, 10) if power * step >= value * (1 - 1e-9))


def _style() -> str:
    inks = "".join(_ink(number, ink) for number, (ink, _) in enumerate(INKS))
    dark = "".join(_ink(number, ink) for number, (_, ink) in enumerate(INKS))
    return f"{_STYLE}{inks}@media (prefers-color-scheme: dark) {{{_DARK}{dark}}}\n"


def _ink(number: int, ink: str) -> str:
    return f".stroke{number} {{ stroke: {ink}; }} .fill{number} {{ fill: {ink}; }}\n"


def _legend(series: Sequence[Series]) -> list[str]:
    parts, x = [], float(LEFT)
    for number, one in enumerate(series):
        dashed = " dashed" if one.is_dashed else ""
        parts.append(f'<path class="line stroke{_ink_of(number)}{dashed}" d="M{x} 64h22"/>')
        parts.append(_text(x + 28, 68, one.name, anchor="start", style="name"))
        x += 28 + 7.2 * len(one.name) + 20
    return parts


def _series(area: _Area, number: int, one: Series) -> str:
    places = [(area.x(dot.x), area.y(dot.y), dot.label) for dot in one.dots]
    line = " L".join(f"{x} {y}" for x, y, _ in places)
    dashed = " dashed" if one.is_dashed else ""
    ink = _ink_of(number)
    parts = [f'<path class="line stroke{ink}{dashed}" d="M{line}"/>'] if len(places) > 1 else []
    parts += [f'<circle class="fill{ink}" cx="{x}" cy="{y}" r="4"/>' for x, y, _ in places]
    parts += [_text(x, y - LABEL_ROOM - 3, label, anchor=_anchor(x, label)) for x, y, label in places if label]
    return "\n".join(parts)


def _anchor(x: float, label: str) -> str:
    """Long labels at the edges stay inside."""
    half = 3.6 * len(label)
    return "start" if x - half < LEFT else "end" if x + half > WIDTH - RIGHT else "middle"


def _ink_of(number: int) -> int:
    return number % len(INKS)


def _mark(area: _Area, mark: Mark, series: Sequence[Series]) -> str:
    x, y = area.x(mark.dot.x), area.y(mark.dot.y)
    ring = f'<circle class="mark" cx="{x}" cy="{y}" r="9"/>'
    if mark.is_centred:
        dots = [(area.x(dot.x), area.y(dot.y)) for one in series for dot in one.dots]
        place = min((y + 26, y - 16), key=lambda place: _crowd(dots, x, place, mark.text))
        return ring + _text(x, place, mark.text, style="marked")
    is_right = x > WIDTH / 2
    place, anchor = (x - 12, "end") if is_right else (x + 12, "start")
    return ring + _text(place, y + 22, mark.text, anchor=anchor, style="marked")


def _crowd(dots: Sequence[tuple[float, float]], x: float, y: float, text: str) -> int:
    """Dots that, or whose labels, a text centred there would cover."""
    half = 3.6 * len(text) + LABEL_ROOM
    return sum(abs(dot_x - x) < half and y - 2 * LABEL_ROOM < dot_y < y + 20 for dot_x, dot_y in dots)


def _limit(area: _Area, x: float, text: str) -> str:
    place = area.x(x)
    line = f'<path class="limit" d="M{place} {TOP}V{HEIGHT - BOTTOM}"/>'
    return line + _text(place + 4, TOP + 12, text, anchor="start", style="marked")


def _text(x: float, y: float, text: str, *, anchor: str = "middle", style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
