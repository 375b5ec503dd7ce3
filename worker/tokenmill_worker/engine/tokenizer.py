"""Text to ids and back through the model's own Hugging Face tokenizer, or without one. Knows no model, no request."""

import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from threading import Lock
from typing import cast

from jinja2 import TemplateError
from transformers import AddedToken, BatchEncoding, PreTrainedTokenizerBase

from tokenmill_worker.engine.api import InvalidRequestError
from tokenmill_worker.engine.token_pieces import Decode, TokenPieces, find_pieces

# Tokens that end an assistant's turn. A chat template that writes one teaches the model to stop there, also where the
# checkpoint's eos_token_id names another token.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")


class HFTokenizer:
    """batch.Tokenizer over AutoTokenizer. Thread-safe: a fast tokenizer is only read; a slow one takes its turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, eos_token_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._turn: Lock | nullcontext[None] = nullcontext() if tokenizer.is_fast else Lock()
        if tokenizer.is_fast:  # what tokenizer.json may switch on would cut a prompt in silence, or be toggled per call
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
        tokenizer.model_max_length = sys.maxsize  # the engine knows the limit; the tokenizer would only log about it
        self.vocab_size: int = len(tokenizer)
        self.has_chat_template: bool = bool(tokenizer.chat_template)
        self.eos_token_ids = frozenset(eos_token_ids) | _end_of_turn_ids(tokenizer)
        self.pieces = _pieces(tokenizer, self.decode)

    def encode(self, text: str) -> list[int]:
        try:
            with self._turn:
                token_ids: list[int] = self._tokenizer.encode(text)
        except (TypeError, UnicodeEncodeError) as error:  # what lone surrogates end in
            raise InvalidRequestError("the prompt is not valid Unicode text", param="prompt") from error
        return token_ids

    def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> list[int]:
        if not self.has_chat_template:
            raise InvalidRequestError(
                "this model has no chat template: send `prompt`, not `messages`", param="messages"
            )
        try:
            with self._turn:
                encoded = cast(
                    "BatchEncoding",
                    self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True),
                )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        token_ids: list[int] = encoded["input_ids"]
        return token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        with self._turn:
            text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast("str", text)


class NoTokenizer:
    """batch.Tokenizer for a checkpoint that has none: prompts must be token ids, and completions have no text."""

    has_chat_template = False
    pieces: TokenPieces | None = TokenPieces([])  # every token adds nothing

    def __init__(self, *, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self.vocab_size = vocab_size
        self.eos_token_ids = frozenset(eos_token_ids)

    def encode(self, text: str) -> list[int]:
        del text
        raise InvalidRequestError("this model has no tokenizer: send `prompt` as a list of token ids", param="prompt")

    def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> list[int]:
        del messages
        raise InvalidRequestError("this model has no tokenizer: send `prompt` as a list of token ids", param="messages")

    def decode(self, token_ids: Sequence[int]) -> str:
        del token_ids
        return ""


def _pieces(tokenizer: PreTrainedTokenizerBase, decode: Decode) -> TokenPieces | None:
    """Not of a slow tokenizer: asking it for its whole vocabulary would take too long."""
    if not tokenizer.is_fast:
        return None
    added: dict[int, AddedToken] = tokenizer.added_tokens_decoder
    special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
    return find_pieces(tokenizer.get_vocab(), special_ids, decode)


def _end_of_turn_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    template, added = str(tokenizer.chat_template or ""), tokenizer.get_added_vocab()
    return frozenset(added[token] for token in END_OF_TURN if token in added and token in template)
