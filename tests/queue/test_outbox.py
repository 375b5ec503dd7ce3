"""What is published of a request: contiguous, coalesced, resent where the server lacks it, cut where it does not."""

import pytest
from tokenmill.wire.errors import FencedError
from tokenmill.wire.keys import Lane
from tokenmill.wire.messages import DeltaEntry, ErrorInfo
from tokenmill_worker.engine.api import Logprobs, RowError, TokenEvent
from tokenmill_worker.queue.admission import ToldChoice
from tokenmill_worker.queue.outbox import CHECKPOINT_S, CHECKPOINT_TOKENS, Outbox, Rejected

from tests.queue.builders import admission, event, tenure


def outbox(*events: TokenEvent, **fields: object) -> Outbox:
    box = Outbox(admission(**fields), now_s=0.0, spell=chr)  # type: ignore[arg-type]  # a test names what it means
    for news in events:
        box.add(news, now_ms=20.0)
    return box


def spans(entries: tuple[DeltaEntry, ...]) -> list[tuple[int, int, str]]:
    return [(entry.offset, entry.index, entry.text) for entry in entries]


def test_tokens_of_several_steps_become_one_entry() -> None:
    box = outbox(event("a"), event("b", offset=1), event("c", offset=2))
    (entry,) = box.publication().entries
    assert (entry.offset, entry.text, entry.token_ids, entry.finish_reason) == (0, "abc", (97, 98, 99), None)


def test_each_entry_holds_one_choice_and_offsets_count_over_all_of_them() -> None:
    box = outbox(event("a"), event("x", index=1), event("b", offset=1), event("y", offset=1, index=1), n=2)
    assert spans(box.publication().entries) == [(0, 0, "ab"), (2, 1, "xy")]


def test_an_order_once_published_is_kept() -> None:
    box = outbox(event("x", index=1), n=2)
    box.publication()
    box.add(event("a"), now_ms=30.0)
    assert spans(box.publication().entries) == [(0, 1, "x"), (1, 0, "a")]


def test_what_the_server_has_is_not_sent_again() -> None:
    box = outbox(event("ab"))
    box.publication()
    box.acknowledge(2, now_s=1.0)
    assert not box.num_unpublished
    box.add(event("c", offset=2), now_ms=30.0)
    assert spans(box.publication().entries) == [(2, 0, "c")]


def test_a_gap_is_answered_by_sending_what_is_missing() -> None:
    box = outbox(event("abcd"))
    box.publication()
    box.acknowledge(4, now_s=1.0)
    box.acknowledge(1, now_s=1.0)  # the server went back to an older copy of itself
    assert spans(box.publication().entries) == [(1, 0, "bcd")]


def test_an_entry_of_which_the_server_has_a_part_is_cut() -> None:
    box = outbox(event("ab"))
    box.publication()  # its reply is lost, and more comes
    box.add(event("cd", offset=2), now_ms=30.0)
    assert spans(box.publication().entries) == [(0, 0, "abcd")]
    box.acknowledge(2, now_s=1.0)
    assert spans(box.publication().entries) == [(2, 0, "cd")]


@pytest.mark.parametrize("num_published", [0, 9])
def test_a_stream_that_is_not_ours_is_not_written_to(num_published: int) -> None:
    box = outbox(event("ab", offset=2), held=tenure(num_published=2), told=(ToldChoice("__", (95, 95)),))
    box.publication()
    with pytest.raises(FencedError):
        box.acknowledge(num_published, now_s=1.0)


def test_a_continued_request_goes_on_at_the_published_offset_and_ends_with_the_whole_text() -> None:
    box = outbox(event("cd", offset=2, ends="length"), held=tenure(num_published=2), told=(ToldChoice("ab", (97, 98)),))
    last = box.finish()
    assert spans(last.deltas) == [(2, 0, "cd")]
    assert last.terminal.text == "abcd"
    assert last.num_tokens == 4


def test_the_last_word_tells_how_it_ended_and_what_it_cost() -> None:
    box = outbox(event("ab"), event("c", offset=2, ends="stop"), held=tenure(accepted_ms=5.0, begun_ms=15.0))
    last = box.finish()
    assert (last.state, last.terminal.type, last.terminal.finish_reason) == ("done", "done", "stop")
    assert (last.terminal.text, last.terminal.usage.completion_tokens) == ("abc", 3)
    assert last.terminal.timings.model_dump() == {"queued": 10.0, "first_token": 15.0, "total": 15.0}
    assert last.deltas[-1].finish_reason == "stop"


def test_the_last_word_over_several_choices_tells_each_of_them() -> None:
    box = outbox(
        event("ab", ends="stop", is_last=False), event("xyz", index=1, ends="length"), n=2, held=tenure(accepted_ms=0.0)
    )
    terminal = box.finish().terminal
    assert terminal.text == "ab"
    assert [(c.index, c.text, c.finish_reason) for c in terminal.choices or ()] == [
        (0, "ab", "stop"),
        (1, "xyz", "length"),
    ]


@pytest.mark.parametrize("reason", ["cancelled", "expired"])
def test_a_request_that_was_ended_keeps_its_partial_text(reason: str) -> None:
    box = outbox(event("ab"), event("", offset=2, ends=reason))  # type: ignore[arg-type]
    last = box.finish()
    assert (last.state, last.terminal.type, last.terminal.text) == (reason, reason, "ab")
    assert last.num_tokens == 2


def test_a_row_that_failed_ends_with_its_error() -> None:
    fault = RowError("non_finite_logits", "the model gave a logit that is not a number")
    last = outbox(event("ab"), event("", offset=2, ends="error", error=fault)).finish()
    assert (last.state, last.terminal.type) == ("failed", "error")
    assert last.terminal.error == ErrorInfo(code=fault.code, message=fault.message)


def test_logprobs_go_with_their_tokens() -> None:
    news = event("a")
    news = TokenEvent(
        request_id="q-1",
        index=0,
        offset=0,
        token_ids=news.token_ids,
        texts=news.texts,
        logprobs=(Logprobs(-0.5, ((97, -0.5),)),),
    )
    (entry,) = outbox(news, logprobs=1).publication().entries
    told = [(one.logprob, one.top, one.pieces) for one in entry.logprobs or ()]
    assert told == [(-0.5, ((97, -0.5),), ("a", "a"))]


def test_a_request_nobody_watches_is_written_down_every_so_many_tokens() -> None:
    box = outbox(event("a" * (CHECKPOINT_TOKENS - 1)), is_streaming=False)
    assert not box.is_due(1.0)
    box.add(event("a", offset=CHECKPOINT_TOKENS - 1), now_ms=30.0)
    assert box.is_due(1.0)


def test_a_request_nobody_watches_is_written_down_every_so_many_seconds() -> None:
    box = outbox(event("a"), is_streaming=False)
    assert box.is_due(CHECKPOINT_S)
    box.publication()
    box.acknowledge(1, now_s=CHECKPOINT_S)
    box.add(event("b", offset=1), now_ms=30.0)
    assert not box.is_due(CHECKPOINT_S + 1)


def test_a_rejected_request_has_one_word_its_error() -> None:
    error = ErrorInfo(code="context_length_exceeded", message="too long")
    last = Rejected(tenure(accepted_ms=1.0, begun_ms=2.0), error, now_ms=4.0).finish()
    assert (last.state, last.terminal.type, last.terminal.error) == ("failed", "error", error)
    assert not last.deltas


def test_in_quarantine_every_token_is_told_as_it_comes_also_of_a_request_nobody_watches() -> None:
    alone = outbox(event("a"), held=tenure(lane=Lane.QUARANTINE), is_streaming=False)
    among_others = outbox(event("a"), is_streaming=False)
    assert (alone.is_due(now_s=0.1), among_others.is_due(now_s=0.1)) == (True, False)
