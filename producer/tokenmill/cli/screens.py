"""Shows several answers while they are written: panels on a terminal, prefixed lines elsewhere. Knows no queue."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Group

LINE_CHARS = 48  # a plain line is written once it is this long: short enough that answers visibly alternate


def can_redraw(stream: TextIO) -> bool:
    """A person's terminal that understands cursor movement; CI and dumb terminals do not."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb" and "CI" not in os.environ


class AnswerScreen(Protocol):
    """Answers by number, from 0."""

    def start(self) -> None: ...
    def write(self, answer: int, text: str) -> None: ...
    def finish(self, answer: int, note: str) -> None: ...
    def stop(self) -> None: ...


class LineScreen:
    """`[2] some words`: a line per piece, for pipes, logs and dumb terminals."""

    def __init__(self, titles: Sequence[str], stream: TextIO) -> None:
        self._titles = titles
        self._stream = stream
        self._pending = [""] * len(titles)

    def start(self) -> None:
        for number, title in enumerate(self._titles, start=1):
            self._write_line(f"[{number}] > {title}")

    def write(self, answer: int, text: str) -> None:
        """Lines end between words; a text without spaces, which some languages are, where it happens to be."""
        self._pending[answer] += text
        if len(self._pending[answer]) >= LINE_CHARS:
            line, _, rest = self._pending[answer].rpartition(" ")
            self._flush(answer, keep=rest if line.strip() else "")

    def finish(self, answer: int, note: str) -> None:
        self._flush(answer)
        self._write_line(f"[{answer + 1}] ({note})")

    def stop(self) -> None:
        """Every line is out already."""

    def _flush(self, answer: int, *, keep: str = "") -> None:
        piece = " ".join(self._pending[answer].removesuffix(keep).split())
        self._pending[answer] = keep
        if piece:
            self._write_line(f"[{answer + 1}] {piece}")

    def _write_line(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class PanelScreen:
    """A panel per answer, all growing at once; needs rich and a terminal."""

    def __init__(self, titles: Sequence[str]) -> None:
        from rich.live import Live

        self._titles = titles
        self._texts = [""] * len(titles)
        self._notes = ["..."] * len(titles)
        self._live = Live(get_renderable=self._render, refresh_per_second=15)

    def start(self) -> None:
        self._live.start()

    def write(self, answer: int, text: str) -> None:
        self._texts[answer] += text

    def finish(self, answer: int, note: str) -> None:
        self._notes[answer] = note

    def stop(self) -> None:
        self._live.stop()

    def _render(self) -> "Group":
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        answers = zip(self._titles, self._texts, self._notes, strict=True)
        return Group(
            *(
                Panel(Text(text.strip()), title=Text(title), subtitle=Text(note), title_align="left")
                for title, text, note in answers
            )
        )


def choose_screen(titles: Sequence[str]) -> AnswerScreen:
    """Panels where they can be drawn."""
    if not can_redraw(sys.stdout):
        return LineScreen(titles, sys.stdout)
    try:
        return PanelScreen(titles)
    except ModuleNotFoundError:  # rich comes with tokenmill[bulk]
        return LineScreen(titles, sys.stdout)
