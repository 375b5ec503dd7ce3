"""Chat completions, whole and in chunks. Pure; a chunk is put together from text, since thousands are made a second."""

from typing import Any

from tokenmill.gateway.asking import DONE, Ask, dump
from tokenmill.gateway.shapes.common import extension, finish_reason, text_json, usage
from tokenmill.gateway.sse import event
from tokenmill.wire.messages import Choice, Completion, Delta


class ChatShape:
    """`n`: choices; `has_usage`: the stream ends with what it used."""

    def __init__(self, ask: Ask, *, n: int = 1, has_usage: bool = False) -> None:
        self._id = f"chatcmpl-{ask.job.id}"
        self._model = ask.model
        self._created = ask.created
        self._n = n
        self._has_usage = has_usage
        self._unfinished = set(range(n))
        head = {"id": self._id, "object": "chat.completion.chunk", "created": ask.created, "model": ask.model}
        self._head = dump(head)[:-1].decode() + ',"choices":['
        self._tail = '],"usage":null}' if has_usage else "]}"

    def opening(self) -> bytes:
        return b"".join(self._event(index, '{"role":"assistant","content":""}') for index in range(self._n))

    def deltas(self, deltas: list[Delta]) -> bytes:
        return b"".join([self._delta(delta) for delta in deltas])

    def ending(self, completion: Completion | None) -> bytes:
        if completion is None:
            return event(DONE)
        cut = [self._event(index, "{}", completion.finish_reason) for index in sorted(self._unfinished)]
        used = [event(self._usage(completion))] if self._has_usage else []
        return b"".join([*cut, *used, event(DONE)])

    def whole(self, completion: Completion) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [_choice(choice, completion) for choice in completion.choices],
            "usage": usage(completion.usage),
            **extension(completion),
        }

    def _delta(self, delta: Delta) -> bytes:
        if delta.finish_reason is not None:
            self._unfinished.discard(delta.index)
        content = f'{{"content":{text_json(delta.text)}}}'
        return self._event(delta.index, content, delta.finish_reason, entry_id=delta.entry_id)

    def _event(self, index: int, content: str, reason: Any = None, *, entry_id: str | None = None) -> bytes:
        reason_json = "null" if reason is None else f'"{finish_reason(reason)}"'
        choice = f'{{"index":{index},"delta":{content},"logprobs":null,"finish_reason":{reason_json}}}'
        return event(f"{self._head}{choice}{self._tail}".encode(), entry_id)

    def _usage(self, completion: Completion) -> bytes:
        return (self._head + f'],"usage":{dump(usage(completion.usage)).decode()}}}').encode()


def _choice(choice: Choice, completion: Completion) -> dict[str, Any]:
    return {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": None,
        "finish_reason": finish_reason(choice.finish_reason or completion.finish_reason),
    }
