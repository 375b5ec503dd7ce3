"""Chat completions, whole and in chunks. Pure; a chunk is put together from text, since thousands are made a second."""

from typing import Any

from tokenmill.gateway.shapes.common import Opened, dump, event_of, extension, finish_reason, text_json, usage
from tokenmill.gateway.shapes.logprobs import chat_logprobs
from tokenmill.gateway.sse import DONE, event
from tokenmill.wire.messages import Choice, Completion, Delta, FinishReason


class ChatShape:
    """Of one answer. `has_usage`: the stream ends with what it used."""

    def __init__(self, opened: Opened, *, has_usage: bool = False) -> None:
        self._base = {"id": f"chatcmpl-{opened.id}", "created": opened.created, "model": opened.model}
        self._has_usage = has_usage
        self._unfinished = set(range(opened.num_choices))
        self._head = dump({**self._base, "object": "chat.completion.chunk"})[:-1].decode() + ',"choices":['
        self._tail = '],"usage":null}' if has_usage else "]}"

    def opening(self) -> bytes:
        role = '{"role":"assistant","content":""}'
        return b"".join([event_of(self._chunk(index, role)) for index in sorted(self._unfinished)])

    def skip(self, delta: Delta) -> None:
        if delta.finish_reason is not None:
            self._unfinished.discard(delta.index)

    def delta(self, delta: Delta) -> bytes:
        self.skip(delta)
        content = f'{{"content":{text_json(delta.text)}}}'
        logprobs = "null"
        if delta.logprobs is not None:
            logprobs = dump(chat_logprobs(delta.token_ids, delta.logprobs)).decode()
        return event_of(self._chunk(delta.index, content, delta.finish_reason, logprobs), delta.entry_id)

    def ending(self, completion: Completion, entry_id: str, *, is_told: bool) -> bytes:
        if is_told:
            return event(DONE, entry_id)
        reason = completion.finish_reason
        last = [self._chunk(index, "{}", reason) for index in sorted(self._unfinished)]
        if self._has_usage:
            last.append(f'{self._head}],"usage":{dump(usage(completion.usage)).decode()}}}')
        return b"".join([event_of(chunk, entry_id) for chunk in last]) + event(DONE, entry_id)

    def whole(self, completion: Completion) -> dict[str, Any]:
        return {
            **self._base,
            "object": "chat.completion",
            "choices": [_choice(choice, completion) for choice in completion.choices],
            "usage": usage(completion.usage),
            **extension(completion),
        }

    def _chunk(self, index: int, content: str, reason: FinishReason | None = None, logprobs: str = "null") -> str:
        ended = "null" if reason is None else f'"{finish_reason(reason)}"'
        choice = f'{{"index":{index},"delta":{content},"logprobs":{logprobs},"finish_reason":{ended}}}'
        return f"{self._head}{choice}{self._tail}"


def _choice(choice: Choice, completion: Completion) -> dict[str, Any]:
    return {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": None if choice.logprobs is None else chat_logprobs(choice.token_ids, choice.logprobs),
        "finish_reason": finish_reason(choice.finish_reason or completion.finish_reason),
    }
