"""What one request has said, and how much of it the server has. Knows no server, no thread and no engine."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from tokenmill.wire.errors import FencedError
from tokenmill.wire.messages import (
    DeltaEntry,
    ErrorInfo,
    FinishReason,
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

_FinalState = Literal["done", "failed", "cancelled", "expired"]
_ENDINGS: dict[FinishReason, tuple[TerminalType, _FinalState]] = {
    "stop": ("done", "done"),
    "length": ("done", "done"),
    "cancelled": ("cancelled", "cancelled"),
    "expired": ("expired", "expired"),
    "error": ("error", "failed"),
}


class _Said(NamedTuple):
    """One token of one choice, with the text that became final with it."""

    choice: int
    token_id: int
    text: str
    logprob: TokenLogprob | None
    finish_reason: FinishReason | None


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

    def __init__(self, admission: Admission, *, now_s: float) -> None:
        self.tenure = admission.tenure
        self.num_published = self.tenure.num_published
        self._base = self.num_published  # offset of _said[0]
        self._is_streaming = admission.is_streaming
        self._said: list[_Said] = []  # in stream order; kept to the end, for resending
        self._fresh: list[_Said] = []  # not yet put in order
        told = admission.told or (ToldChoice(),) * admission.request.params.n
        self._choices = [_ChoiceSoFar(choice) for choice in told]
        self._wants_logprobs = admission.request.params.logprobs is not None
        self._usage: Usage | None = None
        self._error: ErrorInfo | None = None
        self._first_token_ms: float | None = None
        self._total_ms: float | None = None
        self._published_at_s = now_s

    # What was said

    def add(self, event: TokenEvent, *, now_ms: float) -> None:
        choice = self._choices[event.index]
        choice.texts.extend(event.texts)
        choice.finish_reason = event.finish_reason or choice.finish_reason
        self._fresh.extend(_said(event))
        if event.token_ids and self._first_token_ms is None and not self.tenure.num_published:
            self._first_token_ms = now_ms - self.tenure.accepted_ms
        if event.error is not None:
            self._error = ErrorInfo(code=event.error.code, message=event.error.message)
        if event.usage is not None:
            usage = event.usage
            self._usage = Usage(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cached_tokens=usage.cached_tokens,
            )
            self._total_ms = now_ms - self.tenure.accepted_ms

    @property
    def is_complete(self) -> bool:
        """Its last word was said: what remains is `finish`."""
        return self._usage is not None

    @property
    def num_unpublished(self) -> int:
        return self._base + len(self._said) + len(self._fresh) - self.num_published

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
            choices=self._choice_texts(),
            usage=self._usage or Usage(),
            error=self._error if type_ == "error" else None,
            timings=Timings(
                queued=max(0.0, self.tenure.begun_ms - self.tenure.accepted_ms),
                first_token=self._first_token_ms,
                total=self._total_ms,
            ),
        )
        return Finish(
            request_id=self.tenure.request_id,
            fence=self.tenure.fence,
            epoch=self.tenure.epoch,
            deltas=self._entries(),
            terminal=terminal,
            state=state,
            group=self.tenure.group,
            num_tokens=self._base + len(self._said),
        )

    def acknowledge(self, num_published: int, *, now_s: float) -> None:
        """The server has this many tokens: after a publication, or in place of one that left a gap or came twice.

        Raises FencedError when that is no part of what this outbox can tell: then it speaks of another's stream.
        """
        if not self._base <= num_published <= self._base + len(self._said):
            raise FencedError(f"the server has {num_published} tokens of {self.tenure.request_id}, never sent by us")
        self.num_published = num_published
        self._published_at_s = now_s

    def _entries(self) -> tuple[DeltaEntry, ...]:
        self._said += sorted(self._fresh, key=lambda said: said.choice)  # stable: each choice keeps its order
        self._fresh.clear()
        unpublished = self._said[self.num_published - self._base :]
        entries: list[DeltaEntry] = []
        offset = self.num_published
        for index, run in itertools.groupby(unpublished, key=lambda said: said.choice):
            entries.append(self._entry(offset, index, list(run)))
            offset = entries[-1].end
        return tuple(entries)

    def _entry(self, offset: int, index: int, run: Sequence[_Said]) -> DeltaEntry:
        return DeltaEntry(
            offset=offset,
            index=index,
            text="".join(said.text for said in run),
            token_ids=tuple(said.token_id for said in run),
            finish_reason=run[-1].finish_reason,
            logprobs=tuple(said.logprob for said in run if said.logprob is not None) if self._wants_logprobs else None,
        )

    def _final_reason(self) -> FinishReason:
        """The request's own: the first choice's, unless some choice was ended from outside or failed."""
        reasons = [choice.finish_reason or "error" for choice in self._choices]
        return next((reason for reason in reasons if _ENDINGS[reason][0] != "done"), reasons[0])

    def _choice_texts(self) -> tuple[ChoiceText, ...] | None:
        if len(self._choices) == 1:
            return None
        return tuple(
            ChoiceText(index=index, text=choice.text, finish_reason=choice.finish_reason)
            for index, choice in enumerate(self._choices)
        )


class Rejected:
    """The outbox of a request that cannot run: all it ever says is its terminal error."""

    num_unpublished = 0
    is_complete = True

    def __init__(self, tenure: Tenure, error: ErrorInfo, *, now_ms: float) -> None:
        self.tenure = tenure
        self._error = error
        self._timings = Timings(
            queued=max(0.0, tenure.begun_ms - tenure.accepted_ms), total=now_ms - tenure.accepted_ms
        )

    def is_due(self, now_s: float) -> bool:
        return False

    def finish(self) -> Finish:
        return Finish(
            request_id=self.tenure.request_id,
            fence=self.tenure.fence,
            epoch=self.tenure.epoch,
            terminal=TerminalEntry(type="error", finish_reason="error", error=self._error, timings=self._timings),
            state="failed",
            group=self.tenure.group,
        )


def _said(event: TokenEvent) -> Iterator[_Said]:
    last = len(event.token_ids) - 1
    logprobs: Sequence[Logprobs | None] = event.logprobs or (None,) * len(event.token_ids)
    for position, (token_id, text, logprob) in enumerate(zip(event.token_ids, event.texts, logprobs, strict=True)):
        yield _Said(
            event.index,
            token_id,
            text,
            None if logprob is None else TokenLogprob(logprob=logprob.chosen, top=logprob.top),
            event.finish_reason if position == last else None,
        )
