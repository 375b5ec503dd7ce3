"""What one request has said, and how much of it the server has. Knows no server, no thread and no engine."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Literal, NamedTuple

from tokenmill.wire.errors import FencedError
from tokenmill.wire.keys import Lane
from tokenmill.wire.messages import (
    DeltaEntry,
    ErrorInfo,
    FinishReason,
    Piece,
    TerminalEntry,
    TerminalType,
    Timings,
    TokenLogprob,
    Usage,
)
from tokenmill.wire.messages.entries import ChoiceText
from tokenmill.wire.store import Finish, Publication

from tokenmill_worker.engine.api import Logprobs, TokenEvent
from tokenmill_worker.queue.admission import Admission, Tenure, ToldChoice

CHECKPOINT_TOKENS = 256  # of a request that nobody watches: what a killed worker may cost, in tokens ...
CHECKPOINT_S = 5.0  # ... and in time

RETRYABLE = {"engine_error", "out_of_memory", "non_finite_logits"}  # codes of the engine's that may pass by themselves

_FinalState = Literal["done", "failed", "cancelled", "expired"]
_ENDINGS: dict[FinishReason, tuple[TerminalType, _FinalState]] = {
    "stop": ("done", "done"),
    "length": ("done", "done"),
    "cancelled": ("cancelled", "cancelled"),
    "expired": ("expired", "expired"),
    "error": ("error", "failed"),
}

Spell = Callable[[int], Piece]

_position = itemgetter(0)
_NOTHING_TOLD = ToldChoice()


def since_accepted(tenure: Tenure, at_ms: float | None) -> float | None:
    """For a request's timings."""
    return None if at_ms is None else max(0.0, at_ms - tenure.accepted_ms)


def timings_of(tenure: Tenure, first_token_ms: float | None, total_ms: float | None) -> Timings:
    """As Timings would round them, which there is no need to ask."""
    return Timings.of_checked(
        queued=round(max(0.0, float(tenure.begun_ms - tenure.accepted_ms)), 1),
        first_token=None if first_token_ms is None else round(float(first_token_ms), 1),
        total=None if total_ms is None else round(total_ms, 1),
    )


class Ending(NamedTuple):
    """One request's end on this worker, once its last word is with the server."""

    tenure: Tenure
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    error_code: str | None = None
    admission: Admission | None = None  # None: it was refused

    @property
    def traceparent(self) -> str | None:
        return self.admission.traceparent if self.admission is not None else None


class _Log:
    """Tokens in stream order, from offset `base` on, with what a delta tells of them; kept to the end, for resending.

    Three lists side by side and not one of records: there is an entry for every token of every request.
    """

    def __init__(self, base: int, spell: Spell, *, wants_logprobs: bool) -> None:
        self.base = base
        self._spell = spell
        self.token_ids: list[int] = []
        self.texts: list[str] = []
        self.logprobs: list[Logprobs] | None = [] if wants_logprobs else None
        self._starts: list[tuple[int, int]] = []  # (position, choice) where another choice goes on
        self._endings: dict[int, FinishReason] = {}  # position after a choice's last token

    @property
    def end(self) -> int:
        return self.base + len(self.token_ids)

    def append(self, event: TokenEvent) -> None:
        if not event.token_ids:
            return
        if not self._starts or self._starts[-1][1] != event.index:
            self._starts.append((len(self.token_ids), event.index))
        self.token_ids += event.token_ids
        self.texts += event.texts
        if self.logprobs is not None:
            self.logprobs += event.logprobs
        if event.finish_reason is not None:
            self._endings[len(self.token_ids)] = event.finish_reason

    def deltas(self, offset: int) -> list[DeltaEntry]:
        """Of the tokens from `offset` on: one for each run of tokens of one choice."""
        first, end = offset - self.base, len(self.token_ids)
        if first == end:
            return []
        if len(self._starts) == 1:  # as with every request of one choice
            return [self._delta(self._starts[0][1], first, end)]
        runs = self._starts[bisect_right(self._starts, first, key=_position) - 1 :]
        ends = [start for start, _ in runs[1:]] + [end]
        return [self._delta(choice, max(start, first), end) for (start, choice), end in zip(runs, ends, strict=True)]

    def _delta(self, choice: int, start: int, end: int) -> DeltaEntry:
        return DeltaEntry(
            offset=self.base + start,
            index=choice,
            text="".join(self.texts[start:end]),
            token_ids=tuple(self.token_ids[start:end]),
            finish_reason=self._endings.get(end),
            logprobs=self._logprobs(start, end),
        )

    def _logprobs(self, start: int, end: int) -> tuple[TokenLogprob, ...] | None:
        if self.logprobs is None:
            return None
        told = zip(self.token_ids[start:end], self.logprobs[start:end], strict=True)
        return tuple(_logprob(token_id, logprob, self._spell) for token_id, logprob in told)


class _ChoiceSoFar:
    """The whole text of one choice, as the terminal entry will tell it."""

    def __init__(self, told: ToldChoice) -> None:
        self.texts = [told.text]
        self.finish_reason = told.finish_reason

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Outbox:
    """Tokens go in by event, publications come out; `acknowledge` says how far the server is.

    Tokens of all choices share one count, their stream offset. An order that was once published is kept for ever;
    until then, the tokens of one choice are put together, so that n choices do not make an entry of every token.
    """

    def __init__(self, admission: Admission, *, now_s: float, spell: Spell) -> None:
        """`spell`: asked where logprobs are."""
        self.tenure = admission.tenure
        self._admission = admission
        self.num_published = self.tenure.num_published
        wants_logprobs = admission.request.params.logprobs is not None
        self._log = _Log(self.num_published, spell, wants_logprobs=wants_logprobs)
        # In quarantine how far a request came is what clears it, should its worker die: that is told as it comes.
        self._is_streaming = admission.is_streaming or self.tenure.lane is Lane.QUARANTINE
        self._fresh: list[TokenEvent] = []  # not yet put in order
        self._num_fresh = 0  # tokens of those
        told = admission.told or (_NOTHING_TOLD,) * admission.request.params.n
        self._choices = [_ChoiceSoFar(choice) for choice in told]
        self.is_complete = False  # its last word was said: what remains is `finish`
        self._is_exhausted = False
        self.wants_retry = (
            False  # it ended for no fault of its own: the engine failed on it, which may not happen again
        )
        self._usage: Usage | None = None
        self._error: ErrorInfo | None = None
        self._first_token_ms = since_accepted(self.tenure, self.tenure.first_token_ms)
        self._total_ms: float | None = None
        self._published_at_s = now_s

    # What was said

    def add(self, event: TokenEvent, *, now_ms: float) -> float | None:
        """Returns how long the request's first token took, in ms from its acceptance, when this event brings it."""
        choice = self._choices[event.index]
        choice.texts.extend(event.texts)
        choice.finish_reason = event.finish_reason or choice.finish_reason
        self._fresh.append(event)
        self._num_fresh += len(event.token_ids)
        is_first = bool(event.token_ids) and self._first_token_ms is None
        if is_first:
            self._first_token_ms = since_accepted(self.tenure, now_ms)
        if event.error is not None:
            self._error = ErrorInfo(code=event.error.code, message=event.error.message)
            self.wants_retry = event.error.code in RETRYABLE and not self._is_exhausted
        if event.usage is not None:
            usage = event.usage
            self._usage = Usage.of_checked(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cached_tokens=usage.cached_tokens,
            )
            self.is_complete = True
            self._total_ms = since_accepted(self.tenure, now_ms)
        return self._first_token_ms if is_first else None

    @property
    def error_code(self) -> str | None:
        """Of its last word, if that is an error."""
        return self._error.code if self._error is not None else None

    def exhaust(self) -> None:
        """It was retried often enough: the error is its last word."""
        self._is_exhausted, self.wants_retry = True, False

    @property
    def num_unpublished(self) -> int:
        return self._log.end + self._num_fresh - self.num_published

    def is_due(self, now_s: float) -> bool:
        """Is it time to publish? A request nobody watches is written down now and then, against the worker's death."""
        if not self.num_unpublished:
            return False
        if self._is_streaming or self.num_unpublished >= CHECKPOINT_TOKENS:
            return True
        return now_s - self._published_at_s >= CHECKPOINT_S

    # What the server is told

    def publication(self) -> Publication:
        return Publication(
            request_id=self.tenure.request_id,
            fence=self.tenure.fence,
            epoch=self.tenure.epoch,
            entries=self._entries(),
        )

    def finish(self) -> Finish:
        """The last deltas and the terminal entry, in one transition."""
        reason = self._final_reason()
        type_, state = _ENDINGS[reason]
        terminal = TerminalEntry(
            type=type_,
            finish_reason=reason,
            text=self._choices[0].text,
            choices=_choice_texts([(choice.text, choice.finish_reason) for choice in self._choices])
            if len(self._choices) > 1
            else None,
            usage=self._usage or Usage(),
            error=self._error if type_ == "error" else None,
            timings=self._timings(),
        )
        return Finish(
            request_id=self.tenure.request_id,
            fence=self.tenure.fence,
            epoch=self.tenure.epoch,
            deltas=self._entries(),
            terminal=terminal,
            state=state,
            group=self.tenure.group,
            num_tokens=self._log.end,
        )

    def ending(self) -> Ending:
        """Of a request that `is_complete`."""
        code = self._error.code if self._error is not None else None
        usage = self._usage or Usage()
        return Ending(self.tenure, self._final_reason(), usage, self._timings(), code, self._admission)

    def _timings(self) -> Timings:
        return timings_of(self.tenure, self._first_token_ms, self._total_ms)

    def acknowledge(self, num_published: int, *, now_s: float) -> None:
        """The server has this many tokens: after a publication, or in place of one that left a gap or came twice.

        Raises FencedError when that is no part of what this outbox can tell: then it speaks of another's stream.
        """
        if not self._log.base <= num_published <= self._log.end:
            raise FencedError(f"the server has {num_published} tokens of {self.tenure.request_id}, never sent by us")
        self.num_published = num_published
        self._published_at_s = now_s

    def _entries(self) -> tuple[DeltaEntry, ...]:
        if len(self._choices) > 1:
            self._fresh.sort(key=lambda event: event.index)  # stable: each choice keeps its order
        for event in self._fresh:
            self._log.append(event)
        self._fresh.clear()
        self._num_fresh = 0
        return tuple(self._log.deltas(self.num_published))

    def _final_reason(self) -> FinishReason:
        """The request's own: the first choice's, unless some choice was ended from outside or failed."""
        if len(self._choices) == 1:
            return self._choices[0].finish_reason or "error"
        reasons = [choice.finish_reason or "error" for choice in self._choices]
        return next((reason for reason in reasons if _ENDINGS[reason][0] != "done"), reasons[0])


class Rejected:
    """The outbox of a request that cannot run, or not on: its terminal error, after what earlier workers told."""

    num_unpublished = 0
    is_complete = True
    wants_retry = False

    def __init__(self, tenure: Tenure, error: ErrorInfo, *, told: Sequence[ToldChoice] = (), now_ms: float) -> None:
        self.tenure = tenure
        self._error = error
        self._told = told or (ToldChoice(),)
        self._total_ms = since_accepted(tenure, now_ms)

    @property
    def error_code(self) -> str:
        return self._error.code

    def is_due(self, now_s: float) -> bool:
        return False

    def finish(self) -> Finish:
        terminal = TerminalEntry(
            type="error",
            finish_reason="error",
            text=self._told[0].text,
            choices=_choice_texts([(choice.text, choice.finish_reason or "error") for choice in self._told])
            if len(self._told) > 1
            else None,
            usage=self._usage(),
            error=self._error,
            timings=self._timings(),
        )
        return Finish(
            request_id=self.tenure.request_id,
            fence=self.tenure.fence,
            epoch=self.tenure.epoch,
            terminal=terminal,
            state="failed",
            group=self.tenure.group,
        )

    def ending(self) -> Ending:
        return Ending(self.tenure, "error", self._usage(), self._timings(), self._error.code)

    def _usage(self) -> Usage:
        return Usage(completion_tokens=self.tenure.num_published)

    def _timings(self) -> Timings:
        return timings_of(self.tenure, since_accepted(self.tenure, self.tenure.first_token_ms), self._total_ms)


def _logprob(token_id: int, logprob: Logprobs, spell: Spell) -> TokenLogprob:
    pieces = (spell(token_id), *(spell(other) for other, _ in logprob.top))
    return TokenLogprob(logprob=logprob.chosen, top=logprob.top, pieces=pieces)


def _choice_texts(choices: Sequence[tuple[str, FinishReason | None]]) -> tuple[ChoiceText, ...]:
    """As the terminal entry has them, when there are several."""
    return tuple(
        ChoiceText(index=index, text=text, finish_reason=reason) for index, (text, reason) in enumerate(choices)
    )
