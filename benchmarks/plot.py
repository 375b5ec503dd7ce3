"""One curve as an SVG file: x by powers of two, y from zero. Knows no benchmark."""

import math
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 40, 48
INK, LINE, GRID = "#57606a", "#0969da", "#d0d7de"


class Curve(NamedTuple):
    """`points` are (x, y), x > 0 and rising."""

    x_label: str
    y_label: str
    points: list[tuple[float, float]]


def write_svg(path: Path, title: str, curve: Curve) -> None:
    path.write_text(svg(title, curve), encoding="utf-8")


def svg(title: str, curve: Curve) -> str:
    top = nice_ceiling(max(y for _, y in curve.points))
    places = [(_x(curve, x), _y(top, y)) for x, y in curve.points]
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
            f'font-size="12" fill="{INK}">'
        ),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 22, title, size=15),
        *_grid(top),
        (
            f'<polyline fill="none" stroke="{LINE}" stroke-width="2" '
            f'points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'
        ),
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{LINE}"/>' for x, y in places),
        *(
            _text(place[0], HEIGHT - BOTTOM + 16, f"{x:,.0f}")
            for place, (x, _) in zip(places, curve.points, strict=True)
        ),
        _text(WIDTH / 2, HEIGHT - 10, curve.x_label),
        _text(LEFT, TOP - 8, curve.y_label),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def nice_ceiling(value: float) -> float:
    """The next of 1, 2, 2.5, 5, 10 times a power of ten."""
    power: float = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value)


def _grid(top: float) -> list[str]:
    parts = []
    for number in range(6):
        y = _y(top, top * number / 5)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{top * number / 5:,.4g}", anchor="end"))
    return parts


def _x(curve: Curve, x: float) -> float:
    low, high = math.log2(curve.points[0][0]), math.log2(curve.points[-1][0])
    share = (math.log2(x) - low) / (high - low) if high > low else 0.5
    return LEFT + 12 + share * (WIDTH - LEFT - RIGHT - 36)


def _y(top: float, y: float) -> float:
    return HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
