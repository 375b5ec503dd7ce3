"""What each token adds to a text, for tokenizers whose `decode` only joins that. Knows no request and no stream.

Two families do, and nearly every causal LM has a tokenizer of one of them:

    byte-level       every token is a run of bytes, written in GPT-2's alphabet of 256 printable characters
    byte fallback    a token is text with "\u2581" for a space (sentencepiece); the rest is spelled in bytes, <0xE2>

Nothing is assumed of a tokenizer: a table is used only if it gives what `decode` gives, for every token it has.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

Piece = str | bytes  # whole characters, or a run of bytes that need not be
Decode = Callable[[Sequence[int]], str]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_CHECKED_AT_ONCE = 64  # tokens


class TokenPieces(NamedTuple):
    """`table[token_id]` is what the token adds; an id beyond it, like a special token, adds nothing.

    `is_byte_fallback`: bytes that follow each other are characters together or, all of them, U+FFFD each. Otherwise
    bytes join those of the tokens around them, and what is no UTF-8 is replaced as Unicode recommends.
    `strips_space`: a space at the very start of a text is dropped.
    """

    table: list[Piece]
    is_byte_fallback: bool = False
    strips_space: bool = False


def find_pieces(vocabulary: Mapping[str, int], special_ids: frozenset[int], decode: Decode) -> TokenPieces | None:
    """None for a tokenizer of neither family: it has to be asked for every text."""
    for pieces in _candidates(vocabulary, special_ids):
        if all(_joined(pieces, token_ids) == decode(token_ids) for token_ids in _samples(pieces)):
            return pieces
    return None


def _candidates(vocabulary: Mapping[str, int], special_ids: frozenset[int]) -> Iterator[TokenPieces]:
    yield TokenPieces(_table(vocabulary, special_ids, _byte_level()))
    table = _table(vocabulary, special_ids, _sentencepiece)
    for strips_space in (True, False):
        yield TokenPieces(table, is_byte_fallback=True, strips_space=strips_space)


def _table(vocabulary: Mapping[str, int], special_ids: frozenset[int], spell: Callable[[str], Piece]) -> list[Piece]:
    table: list[Piece] = [""] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        if token_id not in special_ids:
            table[token_id] = spell(token)
    return table


def _byte_level() -> Callable[[str], Piece]:
    """GPT-2 writes the bytes that print as themselves, and the others as the characters from 256 on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}

    def spell(token: str) -> Piece:
        try:
            piece = bytes([byte_of[character] for character in token])
        except KeyError:  # an added token, which stands for itself
            return token
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return piece

    return spell


def _sentencepiece(token: str) -> Piece:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ")


def _joined(pieces: TokenPieces, token_ids: Sequence[int]) -> str:
    """The text of tokens whose bytes are characters as they stand, or, byte-level, of any."""
    parts = [pieces.table[token_id] for token_id in token_ids]
    text = b"".join(part if isinstance(part, bytes) else part.encode() for part in parts).decode(errors="replace")
    return text.removeprefix(" ") if pieces.strips_space else text


def _samples(pieces: TokenPieces) -> Iterator[list[int]]:
    """Every token once, in an order that no text has; with byte fallback, bytes in runs that are characters."""
    draw = random.Random(0)
    units = list(_units(pieces))
    draw.shuffle(units)
    for start in range(0, len(units), _CHECKED_AT_ONCE):
        yield list(chain.from_iterable(units[start : start + _CHECKED_AT_ONCE]))
    yield from ([token_id, token_id] for token_id in draw.choices(range(len(pieces.table)), k=50) if pieces.table)


def _units(pieces: TokenPieces) -> Iterator[list[int]]:
    if not pieces.is_byte_fallback:
        yield from ([token_id] for token_id in range(len(pieces.table)))
        return
    yield from ([token_id] for token_id, piece in enumerate(pieces.table) if isinstance(piece, str))
    by_byte = {piece: token_id for token_id, piece in enumerate(pieces.table) if isinstance(piece, bytes)}
    for character in "a\n\xe9\u20ac\N{CAT FACE}":
        spelled = [by_byte.get(bytes([byte])) for byte in character.encode()]
        if None not in spelled:
            yield [token_id for token_id in spelled if token_id is not None]
