"""The fold of a result stream: what adds up to a completion, and what does not."""

import pytest
from tokenmill.reader import ResultReader
from tokenmill.wire.errors import DecodeError
from tokenmill.wire.messages import Completion, Delta, DeltaEntry, Entry, ResetEntry, TokenLogprob, stream_id

from tests.support.hands import delta, done


def feed(reader: ResultReader, entry: Entry, epoch: int = 0) -> Delta | None:
    num_told = entry.end if isinstance(entry, DeltaEntry) else 0
    return reader.feed(stream_id(epoch, num_told), {k.encode(): v.encode() for k, v in entry.encode().items()})


def test_the_completion_has_the_deltas_tokens_and_the_terminals_text() -> None:
    reader = ResultReader("q-1")
    feed(reader, delta(0, "ab", 1, 2))
    feed(reader, delta(2, "c", 3))
    feed(reader, done("abc", 3))
    assert reader.completion is not None
    assert (reader.completion.text, reader.completion.token_ids) == ("abc", [1, 2, 3])


def test_what_is_made_unchecked_equals_what_pydantic_makes_of_it() -> None:
    reader = ResultReader("q-1")
    news = feed(reader, delta(0, "ab", 1, 2))
    assert news == Delta(offset=0, text="ab", token_ids=(1, 2), entry_id=stream_id(0, 2))
    feed(reader, done("ab", 2))
    told = reader.completion
    assert told is not None
    assert told == Completion.model_validate(told.model_dump())
    assert Completion.model_validate_json(told.model_dump_json()) == told


def test_who_wants_no_deltas_gets_the_same_completion() -> None:
    told = []
    for wants_deltas in (False, True):
        reader = ResultReader("q-1", wants_deltas=wants_deltas)
        assert (feed(reader, delta(0, "ab", 1, 2)) is not None) == wants_deltas
        feed(reader, done("ab", 2))
        told.append(reader.completion)
    assert told[0] == told[1]


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_a_delta_that_does_not_join_the_last_is_an_error(offset: int) -> None:
    reader = ResultReader("q-1")
    feed(reader, delta(0, "ab", 1, 2))
    with pytest.raises(DecodeError, match="jumps from token 2"):
        feed(reader, delta(offset, "c", 3))


def test_a_reset_starts_over_from_token_zero() -> None:
    reader = ResultReader("q-1")
    feed(reader, delta(0, "ab", 1, 2))
    assert feed(reader, ResetEntry(), epoch=1) is None
    news = reader.feed("4294967297-0", {k.encode(): v.encode() for k, v in delta(0, "z", 9).encode().items()})
    assert news is not None
    assert news.is_restart
    feed(reader, done("z", 1))
    assert reader.completion is not None
    assert reader.completion.token_ids == [9]


def test_reading_on_after_an_entry_starts_at_its_offset() -> None:
    reader = ResultReader("q-1", after=stream_id(3, 17))
    assert feed(reader, delta(17, "x", 1)) is not None


def test_logprobs_of_all_deltas_are_joined() -> None:
    reader = ResultReader("q-1")
    for offset in range(2):
        logprobs = (TokenLogprob(logprob=-1.0 - offset),)
        feed(reader, DeltaEntry(offset=offset, text="x", token_ids=(offset,), logprobs=logprobs))
    feed(reader, done("xx", 2))
    assert reader.completion is not None
    assert reader.completion.logprobs is not None
    assert [item.logprob for item in reader.completion.logprobs] == [-1.0, -2.0]
