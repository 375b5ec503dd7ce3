"""Result streams become answers, the plain ones by a short way that says the same."""

import json
from collections.abc import Sequence

import pytest
from tokenmill.bulk.answers import Answer, fold
from tokenmill.wire.messages import DeltaEntry, ErrorInfo, ResetEntry, TerminalEntry, Usage

Told = DeltaEntry | ResetEntry | TerminalEntry

DONE = TerminalEntry(
    type="done",
    finish_reason="stop",
    text="ok",
    usage=Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1),
)


def stream(*entries: Told) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Ids as the wire gives them; epochs rise with each reset."""
    told, epoch, found = 0, 0, []
    for entry in entries:
        if isinstance(entry, DeltaEntry):
            told = entry.end
        if isinstance(entry, ResetEntry):
            epoch, told = epoch + 1, 0
        name = f"{epoch << 32 | told}-{int(isinstance(entry, TerminalEntry))}".encode()
        found.append((name, {key.encode(): value.encode() for key, value in entry.encode().items()}))
    return found


PLAIN = (DeltaEntry(0, (5,), "o"), DeltaEntry(1, (6,), "k"), DONE)


def test_deltas_and_the_final_word_make_an_answer() -> None:
    assert fold("a", stream(*PLAIN)) == Answer("a", "ok", [5, 6], "stop", 3, 2, 1)


@pytest.mark.parametrize(
    "entries",
    [(DeltaEntry(0, (9, 9), "zz"), ResetEntry(), *PLAIN), (DeltaEntry(0, (5, 6), "ok", finish_reason="stop"), DONE)],
    ids=["reset", "one delta"],
)
def test_other_streams_of_the_same_tokens_give_the_same(entries: Sequence[Told]) -> None:
    assert fold("a", stream(*entries)) == fold("a", stream(*PLAIN))


def test_an_error_is_told_with_its_code() -> None:
    error = ErrorInfo(code="too_long", message="too many tokens")
    answer = fold("a", stream(TerminalEntry(type="error", finish_reason="error", error=error)))
    assert answer is not None
    assert answer.error == ("too_long", "too many tokens")


def test_what_somebody_else_ended_is_no_answer_of_the_model() -> None:
    answer = fold("a", stream(DeltaEntry(0, (5,), "o"), TerminalEntry(type="cancelled", finish_reason="cancelled")))
    assert answer is not None
    assert answer.error == ("cancelled", "the request was cancelled")


def test_a_stream_without_an_end_is_none() -> None:
    assert fold("a", stream(*PLAIN[:-1])) is None
    assert fold("a", []) is None


def test_an_answer_can_be_written() -> None:
    answer = fold("a", stream(*PLAIN))
    assert answer is not None
    assert json.loads(json.dumps(answer.token_ids)) == [5, 6]
