"""Log-probabilities in the two forms of OpenAI's. Pure.

Chat names tokens by text and bytes; text completions keep four lists side by side, one with where each token begins.
"""

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from tokenmill.wire.messages import Piece, TokenLogprob


def chat_logprobs(token_ids: Sequence[int], logprobs: Iterable[TokenLogprob]) -> dict[str, Any]:
    content = []
    for token_id, one in zip(token_ids, logprobs, strict=False):
        ids = (token_id, *(other for other, _ in one.top))
        values = (one.logprob, *(value for _, value in one.top))
        chosen, *top = [
            {"token": text, "logprob": value, "bytes": raw}
            for (text, raw), value in zip(_tokens(ids, one.pieces), values, strict=True)
        ]
        content.append({**chosen, "top_logprobs": top})
    return {"content": content, "refusal": None}


class TextLogprobs:
    """The tokens of one choice, in order; `length`: characters of its text that are told already."""

    def __init__(self, length: int = 0) -> None:
        self._length = length

    def skip(self, text: str) -> None:
        self._length += len(text)

    def of(self, text: str, token_ids: Sequence[int], logprobs: Iterable[TokenLogprob]) -> dict[str, Any]:
        """Of the tokens that make up `text`. The chosen token is among `top_logprobs`, as OpenAI has it."""
        told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        decoder, offset = codecs.getincrementaldecoder("utf-8")("replace"), self._length
        for token_id, one in zip(token_ids, logprobs, strict=False):
            chosen, *others = _tokens((token_id, *(other for other, _ in one.top)), one.pieces)
            top = {name: value for (name, _), (_, value) in zip(others, one.top, strict=True)}
            told["tokens"].append(chosen[0])
            told["token_logprobs"].append(one.logprob)
            told["top_logprobs"].append({**top, chosen[0]: one.logprob})
            told["text_offset"].append(offset)
            offset += len(decoder.decode(bytes(chosen[1] or ())))
        self.skip(text)
        return told


def _tokens(token_ids: Sequence[int], pieces: Sequence[Piece]) -> list[tuple[str, list[int] | None]]:
    """(text, bytes) of each; a worker that tells no pieces leaves the ids."""
    if len(pieces) != len(token_ids):
        return [(f"token_id:{token_id}", None) for token_id in token_ids]
    return [_token(piece) for piece in pieces]


def _token(piece: Piece) -> tuple[str, list[int]]:
    """Bytes that are no characters are written as OpenAI does: bytes:\\xe2\\x82."""
    if isinstance(piece, str):
        return piece, list(piece.encode("utf-8", "replace"))
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece), list(piece)
