"""Token ids in one by one, final texts out, one per token. Pure: knows no request, no event, no IO.

Two stages, each of which may hold tokens back for a while:

    Utf8Decoder     until their characters are whole
    StopChecker     until their text can no longer be the beginning of a stop string

Texts come out in token order, one for each token; joined they are the completion. A token that only begins a character
has the text "", the character belongs to the token that completes it.
"""

from collections.abc import Sequence

from tokenmill_worker.engine.batch import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character is at most four bytes, hence at most four tokens; at twice that the bytes are no UTF-8 at all.
_MAX_HELD_TOKENS = 8


class Utf8Decoder:
    """Decodes a window that slides over the tokens, so that the cost of a token does not grow with the text.

    A tokenizer may decode a token differently at the start of a text (sentencepiece drops the leading space there), so
    the window begins with the tokens of the last text given out, and their text is cut off again.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decode = tokenizer.decode
        self._context: list[int] = []  # the tokens of the last text given out
        self._context_len = 0  # characters of their text
        self._held: list[int] = []

    def feed(self, token_id: int) -> list[str]:
        """The texts of the tokens that are final now, oldest first."""
        self._held.append(token_id)
        text = self._decode(self._context + self._held)[self._context_len :]
        if not text.endswith(_REPLACEMENT):
            return self._give_out(len(self._held), text)
        return self._give_out_oldest(text) if len(self._held) >= _MAX_HELD_TOKENS else []

    def flush(self) -> list[str]:
        """The texts of all tokens still held: nothing follows. What is no whole character becomes U+FFFD."""
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
        self._beginnings = frozenset(one[:length] for one in stop for length in range(1, len(one)))
        self._longest = max(map(len, self._beginnings), default=0)
        self._shortest = min(map(len, stop))
        self._held: list[str] = []
        self.is_stopped = False

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
        self._decoder = Utf8Decoder(tokenizer)
        self._checker = StopChecker(stop) if stop else None
        self._num_exempt = min_tokens  # tokens still to come whose text is not searched

    @property
    def is_stopped(self) -> bool:
        """A stop string was found: the text is complete, feed no more."""
        return self._checker is not None and self._checker.is_stopped

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
