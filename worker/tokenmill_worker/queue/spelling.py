"""What a single token adds to a text, as a message tells it. Knows no request."""

from tokenmill.wire.messages import Piece

from tokenmill_worker.engine.batch import Tokenizer


class Speller:
    """Remembers what it was asked: whoever wants logprobs asks for the likeliest tokens again and again."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, Piece] = {}

    def __call__(self, token_id: int) -> Piece:
        piece = self._known.get(token_id)
        if piece is None:
            piece = self._known[token_id] = self._spell(token_id)
        return piece

    def _spell(self, token_id: int) -> Piece:
        """A special token adds nothing. Without a table a token alone is decoded, half a character as U+FFFD."""
        pieces = self._tokenizer.pieces
        if pieces is None:
            return self._tokenizer.decode([token_id])
        piece = pieces.table[token_id] if token_id < len(pieces.table) else ""
        return tuple(piece) if isinstance(piece, bytes) else piece
