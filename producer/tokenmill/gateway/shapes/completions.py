"""Text completions, whole and in chunks. Pure."""

from collections.abc import Sequence
from typing import Any

from tokenmill.gateway.shapes.common import Opened, dump, event_of, extension, finish_reason, text_json, usage
from tokenmill.gateway.shapes.logprobs import TextLogprobs
from tokenmill.gateway.sse import DONE, event
from tokenmill.wire.messages import Choice, Completion, Delta, FinishReason


class CompletionShape:
    """Of one answer. `echoes`: what each choice's text begins with, where its prompt was to be repeated."""

    def __init__(self, opened: Opened, *, has_usage: bool = False, echoes: Sequence[str] = ()) -> None:
        self._base = {
            "id": f"cmpl-{opened.id}",
            "object": "text_completion",
            "created": opened.created,
            "model": opened.model,
        }
        self._has_usage = has_usage
        self._echoes = echoes
        self._unfinished = set(range(opened.num_choices))
        self._logprobs = {index: TextLogprobs() for index in range(opened.num_choices)}
        self._head = dump(self._base)[:-1].decode() + ',"choices":['
        self._tail = '],"usage":null}' if has_usage else "]}"

    def opening(self) -> bytes:
        return b"".join([event_of(self._chunk(index, echo)) for index, echo in enumerate(self._echoes)])

    def skip(self, delta: Delta) -> None:
        self._logprobs[delta.index].skip(delta.text)
        self._finish(delta)

    def delta(self, delta: Delta) -> bytes:
        self._finish(delta)
        logprobs = "null"
        if delta.logprobs is not None:
            logprobs = dump(self._logprobs[delta.index].of(delta.text, delta.token_ids, delta.logprobs)).decode()
        return event_of(self._chunk(delta.index, delta.text, delta.finish_reason, logprobs), delta.entry_id)

    def ending(self, completion: Completion, entry_id: str, *, is_told: bool) -> bytes:
        if is_told:
            return event(DONE, entry_id)
        last = [self._chunk(index, "", completion.finish_reason) for index in sorted(self._unfinished)]
        if self._has_usage:
            last.append(f'{self._head}],"usage":{dump(usage(completion.usage)).decode()}}}')
        return b"".join([event_of(chunk, entry_id) for chunk in last]) + event(DONE, entry_id)

    def whole(self, completion: Completion) -> dict[str, Any]:
        return {
            **self._base,
            "choices": [self._choice(choice, completion) for choice in completion.choices],
            "usage": usage(completion.usage),
            **extension(completion),
        }

    def _finish(self, delta: Delta) -> None:
        if delta.finish_reason is not None:
            self._unfinished.discard(delta.index)

    def _chunk(self, index: int, text: str, reason: FinishReason | None = None, logprobs: str = "null") -> str:
        ended = "null" if reason is None else f'"{finish_reason(reason)}"'
        choice = f'{{"index":{index},"text":{text_json(text)},"logprobs":{logprobs},"finish_reason":{ended}}}'
        return f"{self._head}{choice}{self._tail}"

    def _choice(self, choice: Choice, completion: Completion) -> dict[str, Any]:
        told = choice.logprobs
        logprobs = None if told is None else TextLogprobs().of(choice.text, choice.token_ids, told)
        return {
            "index": choice.index,
            "text": (self._echoes[choice.index] if self._echoes else "") + choice.text,
            "logprobs": logprobs,
            "finish_reason": finish_reason(choice.finish_reason or completion.finish_reason),
        }
