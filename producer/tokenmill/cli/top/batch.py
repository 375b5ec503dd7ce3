"""A batch as characters: a line for each place in it, a column for each step, the newest at the right."""

from rich.text import Text

from tokenmill.wire.messages import BatchPicture, RowBar

PREFILL, DECODE, END, CUT = ("■", "yellow"), ("━", "cyan"), ("▌", "bold"), ("✗", "bold red")
_EMPTY = ("·", "bright_black")


def batch_text(picture: BatchPicture | None, *, width: int, num_lines: int) -> Text:
    """Of more places than lines, the first ones; how many are left out is said below them."""
    if picture is None or not picture.steps:
        return Text("nothing has run since somebody looks", style="bright_black")
    num_shown = min(picture.num_rows, num_lines if picture.num_rows <= num_lines else num_lines - 1)
    first = picture.step - min(width, len(picture.steps)) + 1
    lines = [[_EMPTY] * (picture.step - first + 1) for _ in range(num_shown)]
    for bar in picture.bars:
        if bar.row < num_shown:
            _draw(lines[bar.row], bar, first)
    text = Text("\n").join(Text.assemble(*line) for line in lines)
    left_out = picture.num_rows - num_shown
    return text if not left_out else text.append(f"\nand {left_out} rows more", style="bright_black")


def _draw(line: list[tuple[str, str]], bar: RowBar, first: int) -> None:
    if bar.decode_from is not None:
        for step in range(max(bar.decode_from, first), bar.last + 1):
            line[step - first] = DECODE
    for step, _ in bar.prefill:
        if step >= first:
            line[step - first] = PREFILL
    if bar.finish_reason is not None and bar.last >= first:
        line[bar.last - first] = END if bar.finish_reason in ("stop", "length") else CUT
