"""What became of a row's request, read from its result stream. Knows no server and no file."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tokenmill.bulk.rows import Fields
from tokenmill.reader import ResultReader
from tokenmill.wire.messages import Choice, Completion

Entry = tuple[bytes, Mapping[bytes, bytes]]
ENDINGS = (b"stop", b"length")  # by the model; by anyone else a row is not done


class Answer(NamedTuple):
    """A request's final word. `error` (code, message): it failed, and `text` is what there is of it.

    `choices`: as the output shall have them, when more than one was asked for. `logprobs`: one for each token.
    """

    request_id: str
    text: str = ""
    token_ids: Sequence[int] = ()
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    error: tuple[str, str] | None = None
    choices: Sequence[Fields] = ()
    logprobs: Sequence[Fields] | None = None


def fold(request_id: str, entries: Sequence[Entry]) -> Answer | None:
    """A result stream, from its first entry to its terminal one. None: there is no terminal one."""
    return _fold_plain(request_id, entries) or _fold_any(request_id, entries)


def _fold_plain(request_id: str, entries: Sequence[Entry]) -> Answer | None:
    """One choice, from its first token to its end, with nothing special: ten times as fast. None: not like that."""
    token_ids: list[int] = []
    for _, fields in entries[:-1]:
        is_next = fields.get(b"type") == b"delta" and fields.get(b"offset") == b"%d" % len(token_ids)
        if not is_next or b"index" in fields or b"logprobs" in fields:
            return None
        token_ids += json.loads(fields[b"tokens"])
    last = entries[-1][1] if entries else {}
    reason = last.get(b"finish_reason", b"")
    if last.get(b"type") != b"done" or reason not in ENDINGS or b"choices" in last:
        return None
    usage = json.loads(last[b"usage"])
    return Answer(
        request_id,
        last[b"text"].decode(),
        token_ids,
        reason.decode(),
        usage["prompt_tokens"],
        usage["completion_tokens"],
        usage.get("cached_tokens", 0),
    )


def _fold_any(request_id: str, entries: Sequence[Entry]) -> Answer | None:
    reader = ResultReader(request_id)
    for entry_id, fields in entries:
        reader.feed(entry_id.decode(), fields)
    return None if reader.completion is None else _answer(reader.completion)


def _answer(completion: Completion) -> Answer:
    return Answer(
        request_id=completion.request_id,
        text=completion.text,
        token_ids=completion.token_ids,
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.usage.prompt_tokens,
        completion_tokens=completion.usage.completion_tokens,
        cached_tokens=completion.usage.cached_tokens,
        error=_error(completion),
        choices=[_choice(choice) for choice in completion.choices] if len(completion.choices) > 1 else (),
        logprobs=_logprobs(completion.choices[0]),
    )


def _choice(choice: Choice) -> Fields:
    fields: Fields = {
        "index": choice.index,
        "text": choice.text,
        "token_ids": list(choice.token_ids),
        "finish_reason": choice.finish_reason,
    }
    logprobs = _logprobs(choice)
    return fields if logprobs is None else {**fields, "logprobs": list(logprobs)}


def _logprobs(choice: Choice) -> list[Fields] | None:
    """Natural-log probabilities: the token's own, and the likeliest ones' as [token id, logprob]."""
    if choice.logprobs is None:
        return None
    return [{"logprob": one.logprob, "top": [[token, value] for token, value in one.top]} for one in choice.logprobs]


def _error(completion: Completion) -> tuple[str, str] | None:
    """A row counts as done when the model ended it, not when somebody else did."""
    if completion.error is not None:
        return completion.error.code, completion.error.message
    if completion.finish_reason.encode() in ENDINGS:
        return None
    return completion.finish_reason, f"the request was {completion.finish_reason}"
