"""Token ids in one by one, final texts out, one per token. Pure: knows no request, no event, no IO.

Two stages, each of which may hold tokens back for a while:

    a decoder       until their characters are whole: PieceDecoder or, for a tokenizer without pieces, WindowDecoder
    StopChecker     until their text can no longer be the beginning of a stop string

Texts come out in token order, one for each token; joined they are the completion. A token that only begins a character
has the text "", the character belongs to the token that completes it.
"""

from codecs import utf_8_decode
from collections.abc import Sequence
from typing import Protocol

from tokenmill_worker.engine.batch import Tokenizer
from tokenmill_worker.engine.token_pieces import REPLACEMENT, Piece, TokenPieces

# A character is at most four bytes, hence at most four tokens; at twice that the bytes are no UTF-8 at all.
_MAX_HELD_TOKENS = 8


class Decoder(Protocol):
    """The first stage. `is_fluent`: it holds nothing, and the next token's text depends on nothing before it."""

    is_fluent: bool

    def whole(self, token_id: int) -> str | None:
        """The token's text where `feed` would give just that and remember nothing; otherwise None. Changes nothing."""
        ...

    def feed(self, token_id: int) -> list[str]:
        """The texts of the tokens that are final now, oldest first."""
        ...

    def flush(self) -> list[str]:
        """The texts of all tokens still held: nothing follows. What is no whole character becomes U+FFFD."""
        ...


def make_decoder(tokenizer: Tokenizer) -> Decoder:
    pieces = tokenizer.pieces
    if pieces is None:
        return WindowDecoder(tokenizer)
    return FallbackDecoder(pieces) if pieces.is_byte_fallback else PieceDecoder(pieces)


class PieceDecoder:
    """Looks up what a token adds; bytes are joined until they are whole characters, or no UTF-8 at all."""

    __slots__ = ("_data", "_is_at_start", "_num_held", "_table", "is_fluent")

    def __init__(self, pieces: TokenPieces) -> None:
        self._table = pieces.table
        self._is_at_start = pieces.strips_space
        self._num_held = 0
        self._data = b""  # of the tokens held
        self.is_fluent = not self._is_at_start

    def whole(self, token_id: int) -> str | None:
        piece = self._piece(token_id)
        return piece if self.is_fluent and type(piece) is str else None

    def feed(self, token_id: int) -> list[str]:
        piece = self._piece(token_id)
        if self.is_fluent and isinstance(piece, str):
            return [piece]
        self.is_fluent = False
        self._num_held += 1
        text = self._join(piece)
        if text is None and self._num_held < _MAX_HELD_TOKENS:
            return []
        return self._give_out(self._rest() if text is None else text)

    def flush(self) -> list[str]:
        return self._give_out(self._rest()) if self._num_held else []

    def _piece(self, token_id: int) -> Piece:
        try:
            return self._table[token_id]
        except IndexError:  # a model may have more tokens than its tokenizer knows
            return ""

    def _join(self, piece: Piece) -> str | None:
        """The text of everything held, this piece included; None while it ends inside a character."""
        self._data += piece.encode() if isinstance(piece, str) else piece
        text, num_used = utf_8_decode(self._data, "replace", False)
        return text if num_used == len(self._data) else None

    def _rest(self) -> str:
        return self._data.decode(errors="replace")

    def _give_out(self, text: str) -> list[str]:
        if self._is_at_start and text:
            self._is_at_start = False
            text = text.removeprefix(" ")
        given = [""] * (self._num_held - 1) + [text]
        self._data, self._num_held = b"", 0
        self.is_fluent = not self._is_at_start
        return given


class FallbackDecoder(PieceDecoder):
    """As PieceDecoder for bytes that are spelled out: a run of them is characters or, from a flaw on, U+FFFD each."""

    __slots__ = ("_is_flawed",)

    def __init__(self, pieces: TokenPieces) -> None:
        super().__init__(pieces)
        self._is_flawed = False

    def _join(self, piece: Piece) -> str | None:
        if isinstance(piece, str):
            text = self._rest() + piece
            self._is_flawed = self._is_flawed and not piece  # what has no text is not there
            return text if piece or not self._data else None
        self._data += piece
        try:
            return self._rest() if self._is_flawed else self._data.decode()
        except UnicodeDecodeError as error:
            self._is_flawed = error.reason != "unexpected end of data"
            return self._rest() if self._is_flawed else None

    def _rest(self) -> str:
        return REPLACEMENT * len(self._data)

    def _give_out(self, text: str) -> list[str]:
        given = super()._give_out(text)
        self.is_fluent &= not self._is_flawed
        return given


class WindowDecoder:
    """Decodes a window that slides over the tokens, so that the cost of a token does not grow with the text.

    A tokenizer may decode a token differently at the start of a text (sentencepiece drops the leading space there), so
    the window begins with the tokens of the last text given out, and their text is cut off again.
    """

    is_fluent = False

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decode = tokenizer.decode
        self._context: list[int] = []  # the tokens of the last text given out
        self._context_len = 0  # characters of their text
        self._held: list[int] = []

    def whole(self, token_id: int) -> str | None:
        del token_id  # what it adds depends on what came before
        return None

    def feed(self, token_id: int) -> list[str]:
        self._held.append(token_id)
        text = self._decode(self._context + self._held)[self._context_len :]
        if not text.endswith(REPLACEMENT):
            return self._give_out(len(self._held), text)
        return self._give_out_oldest(text) if len(self._held) >= _MAX_HELD_TOKENS else []

    def flush(self) -> list[str]:
        num_held = len(self._held)
        return self._give_out(num_held, self._held_text(num_held)) if num_held else []

    def _held_text(self, num_tokens: int) -> str:
        """What the first `num_tokens` held tokens add to the context's text."""
        return self._decode(self._context + self._held[:num_tokens])[self._context_len :]

    def _give_out_oldest(self, text: str) -> list[str]:
        """The bytes are no UTF-8: let go of the fewest tokens whose text later ones cannot change."""
        for num_tokens in range(1, len(self._held)):
            part = self._held_text(num_tokens)
            if part and text.startswith(part):
                return self._give_out(num_tokens, part)
        return self._give_out(len(self._held), text)

    def _give_out(self, num_tokens: int, text: str) -> list[str]:
        given, self._held = self._held[:num_tokens], self._held[num_tokens:]
        if text:
            self._context = given
            self._context_len = len(self._decode(given))
        elif len(self._context) < _MAX_HELD_TOKENS:
            self._context = self._context + given  # a special token, or a space that the start of a text hides
        return [text] if num_tokens == 1 else [""] * (num_tokens - 1) + [text]


class StopChecker:
    """Finds the first stop string in the texts of `feed`, however they are cut, and holds back what may begin one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._first_characters = frozenset(one[0] for one in stop)
        self._beginnings = frozenset(one[:length] for one in stop for length in range(1, len(one)))
        self._longest = max(map(len, self._beginnings), default=0)
        self._shortest = min(map(len, stop))
        self._held: list[str] = []
        self.is_stopped = False

    def passes(self, text: str) -> bool:
        """Is it final at once, and nothing to remember? Says no where only a closer look would tell."""
        return not self._held and self._first_characters.isdisjoint(text)

    def feed(self, texts: list[str]) -> list[str]:
        """The texts that are final now. Once stopped: all of them, cut before the stop string."""
        self._held += texts
        tail = "".join(self._held)
        start = self._find(tail) if len(tail) >= self._shortest else None
        if start is not None:
            self.is_stopped = True
            return _cut(self.flush(), start)
        return self._give_out(len(tail) - self._num_possible(tail))

    def flush(self) -> list[str]:
        given, self._held = self._held, []
        return given

    def _find(self, tail: str) -> int | None:
        """Where the first stop string in `tail` begins."""
        starts = [tail.index(stop) for stop in self._stop if stop in tail]
        return min(starts, default=None)

    def _num_possible(self, tail: str) -> int:
        """Length of the longest end of `tail` that is the beginning of a stop string."""
        for length in range(min(self._longest, len(tail)), 0, -1):
            if tail[-length:] in self._beginnings:
                return length
        return 0

    def _give_out(self, num_chars: int) -> list[str]:
        """The texts that lie wholly in the first `num_chars` characters held."""
        end = 0
        for index, text in enumerate(self._held):
            end += len(text)
            if end > num_chars:
                given, self._held = self._held[:index], self._held[index:]
                return given
        return self.flush()


def _cut(texts: list[str], num_chars: int) -> list[str]:
    """`texts` with all but the first `num_chars` characters removed; none is dropped."""
    kept = []
    for text in texts:
        kept.append(text[:num_chars])
        num_chars -= len(kept[-1])
    return kept


class Detokenizer:
    """Both stages for one choice. Stop strings are looked for in the text after the first `min_tokens` tokens."""

    def __init__(self, tokenizer: Tokenizer, *, stop: Sequence[str] = (), min_tokens: int = 0) -> None:
        self._decoder = make_decoder(tokenizer)
        self._checker = StopChecker(stop) if stop else None
        self._num_exempt = min_tokens  # tokens still to come whose text is not searched

    @property
    def is_stopped(self) -> bool:
        """A stop string was found: the text is complete, feed no more."""
        return self._checker is not None and self._checker.is_stopped

    @property
    def is_fluent(self) -> bool:
        """As the decoder's; that stop strings are looked for is not counted."""
        return self._decoder.is_fluent

    def whole(self, token_id: int) -> str | None:
        """The token's text where `feed` would give just that and remember nothing; otherwise None. Changes nothing."""
        text = self._decoder.whole(token_id)
        if text is None or self._checker is None:
            return text
        return text if not self._num_exempt and self._checker.passes(text) else None

    def feed(self, token_id: int) -> list[str]:
        """The texts of the tokens that became final with this one, oldest first."""
        texts = self._decoder.feed(token_id)
        if self._checker is None or not texts:
            return texts
        num_exempt = min(self._num_exempt, len(texts))
        self._num_exempt -= num_exempt
        return texts[:num_exempt] + self._checker.feed(texts[num_exempt:])

    def flush(self) -> list[str]:
        """The texts of all tokens still held; nothing follows."""
        texts = self._decoder.flush()
        if self._checker is None:
            return texts
        return self._checker.flush() + ([""] * len(texts) if self.is_stopped else texts)
