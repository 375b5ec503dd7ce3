"""What a reader gets: deltas while a request runs, one completion at its end. Plain frozen values."""

from typing import Annotated, Literal

from pydantic import AfterValidator

from tokenmill.wire.messages.base import Frozen

FinishReason = Literal["stop", "length", "cancelled", "expired", "error"]
JobState = Literal["scheduled", "queued", "running", "done", "failed", "cancelled", "expired", "dead"]
FINAL_STATES: frozenset[str] = frozenset(("done", "failed", "cancelled", "expired", "dead"))


class Usage(Frozen):
    """Tokens, over all choices. `cached_tokens` of the prompt came from the prefix cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


Milliseconds = Annotated[float, AfterValidator(lambda value: round(value, 1))]  # clocks of two machines agree no better


class Timings(Frozen):
    """Since the request was accepted, but `queued`: until its last worker began it. None: never came."""

    queued: Milliseconds | None = None
    first_token: Milliseconds | None = None
    total: Milliseconds | None = None


class ErrorInfo(Frozen):
    """`code` is stable for programs, `message` is for people."""

    code: str
    message: str


Piece = str | tuple[int, ...]  # what a token adds to a text: whole characters, or bytes that need not be


class TokenLogprob(Frozen):
    """Natural-log probabilities at one position: the chosen token's, and the likeliest tokens' as (id, logprob).

    `pieces`: the chosen token's, then those of `top` in order; none from a worker that does not tell them.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    pieces: tuple[Piece, ...] = ()


class Delta(Frozen):
    """News of one choice. `offset`: tokens told before it, over all choices; `entry_id` resumes a stream after it.

    `is_restart`: discard what came before, the request was started from scratch by another model or version.
    """

    offset: int
    index: int = 0
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    entry_id: str
    is_restart: bool = False


class Choice(Frozen):
    """One of a request's n answers. `token_ids` include the stop token; `text` does not, and ends before a stop."""

    index: int = 0
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None


class Completion(Frozen):
    """A request's final word. The properties speak of the first choice; `choices` has all n."""

    request_id: str
    finish_reason: FinishReason
    choices: tuple[Choice, ...]
    usage: Usage
    timings: Timings
    error: ErrorInfo | None = None

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> list[int]:
        """A list, as the engine's outputs have: what is compared, or dumped as JSON, should not differ by its type."""
        return list(self.choices[0].token_ids)

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...] | None:
        return self.choices[0].logprobs
