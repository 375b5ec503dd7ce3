"""Result-stream entries: their fields, their ids, and what is no entry of ours."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill.wire.errors import DecodeError
from tokenmill.wire.messages import (
    ChoiceText,
    DeltaEntry,
    Entry,
    ErrorInfo,
    ResetEntry,
    TerminalEntry,
    Timings,
    TokenLogprob,
    Usage,
    decode_entry,
    split_stream_id,
    stream_id,
)


def round_trip(entry: Entry) -> Entry:
    return decode_entry("1-0", {name.encode(): value.encode() for name, value in entry.encode().items()})


reasons = st.sampled_from(["stop", "length", "cancelled", "expired", "error"])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
logprobs = st.builds(
    TokenLogprob,
    logprob=st.floats(-9999, 0),
    top=st.lists(st.tuples(st.integers(0, 50_000), st.floats(-9999, 0)), max_size=2).map(tuple),
    pieces=st.lists(texts | st.lists(st.integers(0, 255), max_size=4).map(tuple), max_size=3).map(tuple),
)
deltas = st.builds(
    DeltaEntry,
    offset=st.integers(0, 2**32),
    token_ids=st.lists(st.integers(0, 2**31), min_size=1, max_size=5).map(tuple),
    text=texts,
    index=st.integers(0, 9),
    finish_reason=st.none() | reasons,
    logprobs=st.none() | st.lists(logprobs, max_size=3).map(tuple),
)
choices = st.builds(ChoiceText, index=st.integers(0, 5), text=texts, finish_reason=reasons)
terminals = st.builds(
    TerminalEntry,
    type=st.sampled_from(["done", "error", "cancelled", "expired"]),
    finish_reason=reasons,
    text=texts,
    choices=st.none() | st.lists(choices, max_size=3).map(tuple),
    usage=st.builds(Usage, prompt_tokens=st.integers(0, 9), completion_tokens=st.integers(0, 9)),
    error=st.none() | st.builds(ErrorInfo, code=texts, message=texts),
    timings=st.builds(Timings, total=st.none() | st.floats(0, 1e9)),
)


@given(deltas | terminals | st.just(ResetEntry()))
@settings(max_examples=150, deadline=None)
def test_encode_and_decode_are_inverse(entry: Entry) -> None:
    assert round_trip(entry) == entry


def test_a_field_that_a_later_version_adds_is_left_aside() -> None:
    assert decode_entry("1-0", {b"type": b"reset", b"because": b"x"}) == ResetEntry()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"type": b"news"},
        {b"type": b"delta"},
        {b"type": b"delta", b"offset": b"x", b"text": b"", b"tokens": b"[1]"},
        {b"type": b"delta", b"offset": b"0", b"text": b"", b"tokens": b"[]"},
        {b"type": b"delta", b"offset": b"0", b"text": b"\xff", b"tokens": b"[1]"},
        {b"type": b"delta", b"offset": b"0", b"text": b"", b"tokens": b"[1.5]"},
        {b"type": b"delta", b"offset": b"0", b"text": b"", b"tokens": b"[1]", b"logprobs": b"[]", b"pieces": b"[[]]"},
        {b"type": b"done"},
        {b"type": b"done", b"finish_reason": b"tired"},
        {b"type": b"done", b"finish_reason": b"stop", b"usage": b"{"},
    ],
)
def test_what_is_no_entry_of_ours_is_a_decode_error(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(DecodeError):
        decode_entry("1-0", fields)


def test_minus_infinity_travels_as_openais_floor() -> None:
    entry = DeltaEntry(offset=0, token_ids=(1,), text="", logprobs=(TokenLogprob(logprob=-1e30),))
    decoded = round_trip(entry)
    assert isinstance(decoded, DeltaEntry)
    assert decoded.logprobs == (TokenLogprob(logprob=-9999.0),)


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=100)
def test_a_stream_id_tells_epoch_and_offset_without_loss(epoch: int, num_tokens: int, terminal: bool) -> None:
    entry_id = stream_id(epoch, num_tokens, terminal=terminal)
    assert split_stream_id(entry_id) == (epoch, num_tokens)
    assert entry_id.endswith("-1" if terminal else "-0")


def test_ids_sort_as_the_tokens_were_told() -> None:
    ids = [stream_id(0, 1), stream_id(0, 2), stream_id(0, 2, terminal=True), stream_id(1, 0), stream_id(1, 1)]
    order = [tuple(int(part) for part in entry_id.split("-")) for entry_id in ids]
    assert order == sorted(order)
