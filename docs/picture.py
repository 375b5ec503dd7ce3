"""Draws a terminal's content as SVG, colours and all. Knows no command: it draws what it is given.

tmux new-session -d -s demo -x 100 -y 50 "tokenmill demo; sleep 60"      and, when it is done:
tmux capture-pane -e -p -t demo | python -m docs.picture "tokenmill demo" docs/demo.svg
"""

import io
import re
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

WIDTH = 100  # columns, as the terminal had
# Without rich's comment and the fonts from a foreign host that it links to: the picture shall be all there is to load.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n|<!--.*?-->\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code, monospace", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace"
)


def draw(ansi: str, *, title: str) -> str:
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(ansi.rstrip()), soft_wrap=True)
    return console.export_svg(title=title, code_format=FORMAT)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(draw(sys.stdin.read(), title=sys.argv[1]))
