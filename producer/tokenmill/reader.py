"""Folds the entries of one result stream into deltas and a completion. Pure: knows no server and no clock."""

from collections.abc import Mapping

from tokenmill.wire.errors import DecodeError
from tokenmill.wire.messages import (
    Choice,
    Completion,
    Delta,
    DeltaEntry,
    FinishReason,
    ResetEntry,
    TerminalEntry,
    TokenLogprob,
    decode_entry,
    split_stream_id,
)


class ResultReader:
    """One request's stream, entry by entry, from the start or after an entry that was read before.

    Entries must be contiguous in token offset: a hole would be a lost token, and is an error rather than a guess.
    """

    def __init__(self, request_id: str, *, after: str = "0-0", wants_deltas: bool = True) -> None:
        """Without `wants_deltas` only the completion is made of them."""
        self.request_id = request_id
        self._wants_deltas = wants_deltas
        self.last_id = after
        self.completion: Completion | None = None
        self._num_told = split_stream_id(after)[1]
        self._is_restarted = False
        self._choices: dict[int, _ChoiceFold] = {}

    def feed(self, entry_id: str, fields: Mapping[bytes, bytes]) -> Delta | None:
        """The news in this entry, if any. DecodeError: the entry is broken, or others before it are missing."""
        entry = decode_entry(entry_id, fields)
        delta = None
        if isinstance(entry, DeltaEntry):
            delta = self._add(entry_id, entry)
        elif isinstance(entry, ResetEntry):
            self._reset()
        else:
            self.completion = self._complete(entry)
        self.last_id = entry_id
        return delta

    def _add(self, entry_id: str, entry: DeltaEntry) -> Delta | None:
        if entry.offset != self._num_told:
            raise DecodeError(
                f"the result of {self.request_id!r} jumps from token {self._num_told} to {entry.offset}", param="offset"
            )
        self._choices.setdefault(entry.index, _ChoiceFold()).add(entry)
        self._num_told = entry.end
        if not self._wants_deltas:
            return None
        is_restart, self._is_restarted = self._is_restarted, False
        return Delta.of_checked(
            offset=entry.offset,
            index=entry.index,
            text=entry.text,
            token_ids=entry.token_ids,
            logprobs=entry.logprobs,
            finish_reason=entry.finish_reason,
            entry_id=entry_id,
            is_restart=is_restart,
        )

    def _reset(self) -> None:
        self._choices.clear()
        self._num_told = 0
        self._is_restarted = True

    def _complete(self, entry: TerminalEntry) -> Completion:
        return Completion.of_checked(
            request_id=self.request_id,
            finish_reason=entry.finish_reason,
            choices=self._final_choices(entry),
            usage=entry.usage,
            timings=entry.timings,
            error=entry.error,
        )

    def _final_choices(self, entry: TerminalEntry) -> tuple[Choice, ...]:
        """Texts as the terminal entry has them; tokens and log-probabilities as the deltas told them."""
        if entry.choices is None:
            return (self._fold(0).final(0, entry.text, entry.finish_reason),)
        return tuple(
            self._fold(choice.index).final(choice.index, choice.text, choice.finish_reason or entry.finish_reason)
            for choice in entry.choices
        )

    def _fold(self, index: int) -> "_ChoiceFold":
        return self._choices.get(index) or _ChoiceFold()


class _ChoiceFold:
    """One choice while its deltas come in."""

    def __init__(self) -> None:
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] | None = None

    def add(self, entry: DeltaEntry) -> None:
        self._token_ids += entry.token_ids
        if entry.logprobs is not None:
            self._logprobs = (self._logprobs or []) + list(entry.logprobs)

    def final(self, index: int, text: str, finish_reason: FinishReason) -> Choice:
        return Choice.of_checked(
            index=index,
            text=text,
            token_ids=tuple(self._token_ids),
            finish_reason=finish_reason,
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
        )
