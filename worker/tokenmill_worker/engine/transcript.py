"""What one choice has said so far, what of it was told, and why it ended. Knows no pages and no schedule."""

from collections.abc import Iterable

from tokenmill_worker.engine.api import FinishReason, Logprobs, RowError, SamplingParams, TokenEvent, Usage
from tokenmill_worker.engine.batch import Tokenizer
from tokenmill_worker.engine.detokenizer import Detokenizer


class Transcript:
    """Tokens go in with `add`, news come out with `take_event`.

    `max_tokens` is what this choice may reach: the request's max_tokens, or less where the model ends. `is_told`: the
    finish reason was told too, nothing is left to say.
    """

    __slots__ = (
        "_detokenizer",
        "_logprobs",
        "_max_tokens",
        "_min_tokens",
        "_num_to_skip",
        "_num_told",
        "_stop_token_ids",
        "_texts",
        "_token_ids",
        "can_be_fluent",
        "finish_reason",
        "index",
        "is_told",
        "num_tokens",
        "request_id",
    )

    def __init__(
        self,
        request_id: str,
        index: int,
        params: SamplingParams,
        tokenizer: Tokenizer,
        *,
        stop_token_ids: Iterable[int],
        max_tokens: int,
    ) -> None:
        self.request_id = request_id
        self.index = index
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._detokenizer = Detokenizer(tokenizer, stop=params.stop, min_tokens=params.min_tokens)
        self.can_be_fluent = not params.stop and params.logprobs is None
        self._stop_token_ids = frozenset(stop_token_ids)
        self._min_tokens = params.min_tokens
        self._max_tokens = max_tokens
        self._num_told = 0
        self._num_to_skip = 0  # tokens held back here that an earlier worker told
        self.is_told = False
        self._token_ids: list[int] = []  # not told yet
        self._logprobs: list[Logprobs] = []  # of those
        self._texts: list[str] = []  # of those, as far as they are final

    def add(self, token_id: int, logprobs: Logprobs | None) -> None:
        """The next token was drawn. `finish_reason` says whether it was the last."""
        self.num_tokens += 1
        self._token_ids.append(token_id)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        if token_id in self._stop_token_ids and self.num_tokens > self._min_tokens:
            self.finish("stop")
            return
        self._texts += self._detokenizer.feed(token_id)
        if self._detokenizer.is_stopped:
            self.finish("stop")
        elif self.num_tokens >= self._max_tokens:
            self.finish("length")

    def say(self, token_id: int) -> TokenEvent | None:
        """`add` and `take_event` at once, for a token that is told by itself and ends nothing, as nearly all do.

        None: it is not such a token, and nothing was done.
        """
        if self._token_ids or token_id in self._stop_token_ids or self.num_tokens + 1 >= self._max_tokens:
            return None
        text = self._detokenizer.whole(token_id)
        if text is None:
            return None
        self.num_tokens += 1
        offset = self._num_told
        self._num_told = offset + 1
        return TokenEvent(self.request_id, self.index, offset, (token_id,), (text,))

    @property
    def is_fluent(self) -> bool:
        """All is told, and the next token's text depends on that token alone."""
        return self.can_be_fluent and self._detokenizer.is_fluent and not self._token_ids

    def catch_up(self, num_tokens: int) -> None:
        """So many tokens were drawn: those that it did not hear of were told without it, while it was fluent."""
        self._num_told += num_tokens - self.num_tokens
        self.num_tokens = num_tokens

    def finish(self, reason: FinishReason) -> None:
        """No token follows. What was held back becomes final, the stop token has no text."""
        self.finish_reason = reason
        self._texts += self._detokenizer.flush()
        self._texts += [""] * (len(self._token_ids) - len(self._texts))

    def replay(self, token_ids: Iterable[int], finish_reason: FinishReason | None) -> None:
        """Take up what an earlier worker told: the state is as if these tokens had been drawn, none of them is news.

        That worker may have known later tokens when it told the last of these, so some may be held back here again;
        they are skipped when they come out.
        """
        for token_id in token_ids:
            self.add(token_id, None)
        num_final = len(self._texts)
        self._num_told = self.num_tokens
        self._num_to_skip = self.num_tokens - num_final
        del self._token_ids[:num_final], self._texts[:]
        if finish_reason is not None:
            self.finish_reason = finish_reason
            self.is_told = True

    def tell_end_again(self) -> None:
        """An earlier worker told how this choice ended, but not that the whole request did."""
        self.is_told = False

    def take_event(self, *, usage: Usage | None = None, error: RowError | None = None) -> TokenEvent | None:
        """What is new since the last call; None when nothing is."""
        texts = self._take_texts()
        is_over = self.finish_reason is not None and not self.is_told
        if not texts and not is_over:
            return None
        num_told = len(texts)
        event = TokenEvent(
            self.request_id,
            self.index,
            self._num_told,
            tuple(self._token_ids[:num_told]),
            tuple(texts),
            tuple(self._logprobs[:num_told]),
            self.finish_reason,
            usage,
            error,
        )
        del self._token_ids[:num_told], self._logprobs[:num_told]
        self._num_told += num_told
        self.is_told = is_over
        return event

    def _take_texts(self) -> list[str]:
        """The final texts that nobody was told."""
        texts, self._texts = self._texts, []
        if self._num_to_skip:
            num_skipped = min(self._num_to_skip, len(texts))
            self._num_to_skip -= num_skipped
            del self._token_ids[:num_skipped], texts[:num_skipped]
        return texts
