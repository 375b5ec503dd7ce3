"""Rows whose tokens are told all at once tell what their transcripts would, whatever comes between."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill_worker.engine.api import SamplingParams, TokenEvent
from tokenmill_worker.engine.batch import Bools, Ids, Ints
from tokenmill_worker.engine.engine import Engine
from tokenmill_worker.engine.fluent import FluentRows

from tests.engine.harness import make_engine, make_request

KINDS = (
    SamplingParams(max_tokens=30),
    SamplingParams(temperature=0.0, max_tokens=25),
    SamplingParams(max_tokens=20, stop=("e", "ab")),
    SamplingParams(max_tokens=20, logprobs=1),
    SamplingParams(max_tokens=15, n=3, seed=5),
    SamplingParams(max_tokens=20, min_tokens=4, stop_token_ids=tuple(b"aeiou")),
)


class FluentOnly(FluentRows):
    """Counts what it told."""

    num_told = 0

    def can_tell(self, rows: Ints, token_ids: Ids) -> Bools:
        can = super().can_tell(rows, token_ids)
        self.num_told += int(can.sum())
        return can


class NeverFluent(FluentRows):
    """Leaves all of it to the transcripts."""

    def can_tell(self, rows: Ints, token_ids: Ids) -> Bools:
        return np.zeros(len(rows), dtype=np.bool_)


def an_engine(kind: type[FluentRows], *, num_pages: int = 256) -> Engine:
    engine = make_engine(num_pages=num_pages)
    engine._fluent = kind(engine._scheduler.rows, engine.tokenizer, vocab_size=256)
    engine._scheduler._observed_output = 1.0  # admits too much: rows are preempted
    return engine


def news(engine: Engine, kinds: list[int], *, cancel_at: int) -> Iterator[TokenEvent]:
    for index, kind in enumerate(kinds):
        engine.add_request(make_request(f"prompt {index}", KINDS[kind], request_id=f"r{index}"))
    for number in range(10_000):
        if not engine.has_work():
            return
        if number == cancel_at:
            engine.cancel("r0")
        yield from engine.step()
        engine.check_integrity()


def by_choice(events: Iterator[TokenEvent]) -> dict[tuple[str, int], list[TokenEvent]]:
    found: dict[tuple[str, int], list[TokenEvent]] = defaultdict(list)
    for event in events:
        found[event.request_id, event.index].append(event)
    return found


@settings(max_examples=25)
@given(
    kinds=st.lists(st.integers(0, len(KINDS) - 1), min_size=1, max_size=9),
    cancel_at=st.integers(1, 40),
    num_pages=st.sampled_from([6, 12, 256]),
)
def test_the_events_are_those_of_the_transcripts(kinds: list[int], cancel_at: int, num_pages: int) -> None:
    events = by_choice(news(an_engine(FluentRows, num_pages=num_pages), kinds, cancel_at=cancel_at))
    expected = by_choice(news(an_engine(NeverFluent, num_pages=num_pages), kinds, cancel_at=cancel_at))
    assert events == expected


def test_nearly_all_tokens_of_plain_text_are_told_at_once() -> None:
    engine = an_engine(FluentOnly)
    params = SamplingParams(temperature=0.0, max_tokens=50, logit_bias={ord("e"): 100.0})
    engine.generate(["a", "b", "c"], params)
    assert isinstance(engine._fluent, FluentOnly)
    assert engine._fluent.num_told == 3 * 48  # the first tells that the row is fluent, the last ends it


@pytest.mark.parametrize("stops", [False, True])
def test_a_token_at_which_one_row_ends_does_not_end_others(stops: bool) -> None:
    engine = an_engine(FluentRows)
    bias = {ord("e"): 100.0}
    params = SamplingParams(
        temperature=0.0, max_tokens=9, min_tokens=4, logit_bias=bias, stop_token_ids=(ord("e"),) * stops
    )
    other = SamplingParams(temperature=0.0, max_tokens=9, logit_bias=bias)
    outputs = engine.generate(["a", "b"], [params, other])
    assert outputs[0].finish_reason == ("stop" if stops else "length")
    assert (outputs[1].text, outputs[1].finish_reason) == ("e" * 9, "length")
