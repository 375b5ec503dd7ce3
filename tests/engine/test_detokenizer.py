from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenmill_worker.engine.detokenizer import Detokenizer
from tokenmill_worker.engine.echo import EchoTokenizer
from tokenmill_worker.engine.token_pieces import TokenPieces

ECHO = EchoTokenizer()


class WordTokenizer:
    """Like sentencepiece: words begin with a space that is dropped at the start of a text. Id 0 is special."""

    vocab_size = 100
    eos_token_ids = frozenset({0})
    has_chat_template = False
    pieces: TokenPieces | None = None
    words: tuple[str, ...] = ("", " the", " cat", "s", " é", "!")

    def encode(self, text: str) -> list[int]:
        raise AssertionError("a detokenizer only decodes")

    def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> list[int]:
        raise AssertionError("a detokenizer only decodes")

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.words[token_id] for token_id in token_ids).removeprefix(" ")


class PieceTokenizer(WordTokenizer):
    """Token i is the i-th piece."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.words = tuple(pieces)

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.words[token_id] for token_id in token_ids)


def feed_all(detokenizer: Detokenizer, token_ids: Sequence[int]) -> list[str]:
    """Texts of the tokens until the end or a stop string."""
    texts: list[str] = []
    for token_id in token_ids:
        texts += detokenizer.feed(token_id)
        if detokenizer.is_stopped:
            break
    return texts + detokenizer.flush()


def test_a_split_character_belongs_to_the_token_that_completes_it() -> None:
    detokenizer = Detokenizer(ECHO)
    assert [detokenizer.feed(byte) for byte in "a€b".encode()] == [["a"], [], [], ["", "", "€"], ["b"]]


def test_an_unfinished_character_becomes_a_replacement_character_at_the_end() -> None:
    assert feed_all(Detokenizer(ECHO), "a€".encode()[:-1]) == ["a", "", "\N{REPLACEMENT CHARACTER}"]


def test_bytes_that_are_no_text_are_not_held_for_ever() -> None:
    detokenizer = Detokenizer(ECHO)
    num_given_out = 0
    for fed in range(1, 200):
        num_given_out += len(detokenizer.feed(0xFF))
        assert fed - num_given_out < 8


@given(st.lists(st.integers(0, 255), max_size=60))
def test_any_bytes_give_one_text_each_and_together_what_decode_gives(token_ids: list[int]) -> None:
    texts = feed_all(Detokenizer(ECHO), token_ids)
    assert len(texts) == len(token_ids)
    assert "".join(texts) == ECHO.decode(token_ids)


@given(st.lists(st.integers(0, 5), max_size=20))
def test_leading_spaces_survive_and_special_tokens_give_no_text(token_ids: list[int]) -> None:
    tokenizer = WordTokenizer()
    texts = feed_all(Detokenizer(tokenizer), token_ids)
    assert "".join(texts) == tokenizer.decode(token_ids)
    assert all(text == "" for text, token_id in zip(texts, token_ids, strict=True) if token_id == 0)


@pytest.mark.parametrize("pieces", [["ab", "cST", "OPd"], ["abcSTOPd"], list("abcSTOPd"), ["abcS", "T", "OP", "d"]])
def test_text_ends_before_a_stop_string_however_tokens_cut_it(pieces: list[str]) -> None:
    tokenizer = PieceTokenizer(pieces)
    detokenizer = Detokenizer(tokenizer, stop=("STOP",))
    assert "".join(feed_all(detokenizer, range(len(pieces)))) == "abc"
    assert detokenizer.is_stopped


def test_what_may_begin_a_stop_string_is_held_back_until_it_does_not() -> None:
    detokenizer = Detokenizer(ECHO, stop=("aab",))
    given_out = [detokenizer.feed(byte) for byte in b"xaaac"]
    assert given_out == [["x"], [], [], ["a"], ["a", "a", "c"]]


def test_the_tokens_of_a_stop_string_are_told_without_text() -> None:
    detokenizer = Detokenizer(ECHO, stop=("END",))
    texts = [text for byte in b"xEND" for text in detokenizer.feed(byte)]
    assert texts == ["x", "", "", ""]


def test_a_stop_string_may_have_split_characters() -> None:
    detokenizer = Detokenizer(ECHO, stop=("é€",))
    assert "".join(feed_all(detokenizer, list("aé€b".encode()))) == "a"


def test_the_stop_string_that_begins_first_counts() -> None:
    tokenizer = PieceTokenizer(["xabcd"])
    assert feed_all(Detokenizer(tokenizer, stop=("cd", "abc")), [0]) == ["x"]


def test_stop_strings_are_not_looked_for_in_the_first_min_tokens_tokens() -> None:
    detokenizer = Detokenizer(ECHO, stop=("ab",), min_tokens=3)
    assert "".join(feed_all(detokenizer, b"ababab")) == "aba" + "b"


@given(
    st.text(st.sampled_from("ab€"), max_size=30),
    st.lists(st.text(st.sampled_from("ab€"), min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_one_byte_at_a_time_the_first_stop_string_to_be_complete_cuts_the_text(text: str, stop: list[str]) -> None:
    detokenizer = Detokenizer(ECHO, stop=stop)
    texts = feed_all(detokenizer, text.encode())
    ends = [(text.index(one) + len(one), text.index(one)) for one in stop if one in text]
    first_end = min(ends, default=(0, len(text)))[0]
    starts = [start for end, start in ends if end == first_end]
    assert "".join(texts) == text[: min(starts, default=len(text))]


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=3), max_size=2), st.integers(0, 60))
def test_what_was_told_never_depends_on_what_follows(text: str, stop: list[str], cut: int) -> None:
    """Texts given out for a prefix of the tokens are a prefix of those for all of them."""
    token_ids = text.encode()
    early = Detokenizer(ECHO, stop=stop)
    told = [piece for byte in token_ids[:cut] if not early.is_stopped for piece in early.feed(byte)]
    assert feed_all(Detokenizer(ECHO, stop=stop), token_ids)[: len(told)] == told
