"""Answers on a screen that cannot redraw: whole words, in turns."""

import io

from tokenmill.cli.screens import LINE_CHARS, LineScreen


def test_lines_end_between_words_and_lose_nothing() -> None:
    stream = io.StringIO()
    screen = LineScreen(["a question"], stream)
    text = "Tell me, naïve one, why the mill turns at night while nobody is there to feed it any grain at all."
    screen.start()
    for start in range(0, len(text), 5):
        screen.write(0, text[start : start + 5])
    screen.finish(0, "stop")
    title, *lines, note = stream.getvalue().splitlines()
    assert (title, note) == ("[1] > a question", "[1] (stop)")
    assert " ".join(line.removeprefix("[1] ") for line in lines) == text
    assert all(len(line) <= LINE_CHARS + 4 for line in lines)


def test_a_text_without_spaces_is_shown_all_the_same() -> None:
    stream = io.StringIO()
    screen = LineScreen(["?"], stream)
    screen.write(0, "字" * 100)
    screen.finish(0, "length")
    assert stream.getvalue().count("字") == 100


def test_answers_are_shown_in_the_order_in_which_they_come() -> None:
    stream = io.StringIO()
    screen = LineScreen(["a", "b"], stream)
    for _ in range(2):
        screen.write(0, "x" * LINE_CHARS)
        screen.write(1, "y" * LINE_CHARS)
    assert [line[:3] for line in stream.getvalue().splitlines()] == ["[1]", "[2]", "[1]", "[2]"]
