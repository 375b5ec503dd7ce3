"""The typed events of one response, made of its result delta by delta. Pure: knows no server and no clock.

An event's sequence number follows from the deltas before it alone, and they are the same for everybody. So every
gateway process that reads a result from its start gives the same events, and a client resumes with the last number that
it saw, wherever it connects.
"""

import json
from collections.abc import Iterator
from typing import NamedTuple

from tokenmill.gateway.responses.view import (
    Asked,
    Fields,
    MessageStatus,
    Outcome,
    final_outcome,
    has_message,
    item_id,
    message_item,
    message_status,
    response_object,
    text_part,
)
from tokenmill.wire.messages import Completion, Delta, split_stream_id


class Event(NamedTuple):
    """`data`: JSON, with `type` and `sequence_number` in it."""

    sequence_number: int
    type: str
    data: str


class ResponseEvents:
    """One reading of one response's events, from the first or after number `after`.

    The deltas are added from the first in any case: what stands before `after` is counted and not told.
    """

    def __init__(self, request_id: str, asked: Asked, *, after: int = -1) -> None:
        self._request_id = request_id
        self._asked = asked
        self._after = after
        self._number = -1  # of the last event
        self._has_begun = False
        self._message: _Message | None = None
        self._num_items = 0

    @property
    def next_number(self) -> int:
        return self._number + 1

    def opening(self) -> Iterator[Event]:
        """What is told before the first delta."""
        status = self._response(Outcome("queued" if self._asked.background else "in_progress", []))
        yield from self._event("response.created", response=status)
        if self._asked.background:
            yield from self._event("response.queued", response=status)
        else:
            yield from self._begin()

    def add(self, delta: Delta) -> Iterator[Event]:
        """What one delta tells."""
        yield from self._begin()
        if delta.is_restart and self._message is not None:
            yield from self._close(self._message, "".join(self._message.texts), "incomplete")
            self._message = None
        message = self._message
        if message is None:
            message = self._open(delta.entry_id)
            yield from self._added(message)
        if delta.text:
            message.texts.append(delta.text)
            yield from self._delta(message, delta.text)

    def end(self, completion: Completion) -> Iterator[Event]:
        """What the last word tells."""
        yield from self._begin()
        message = self._message
        if message is None and has_message(completion):
            message = self._open("0-0")
            yield from self._added(message)
        outcome = final_outcome(completion, message.item_id if message else "", self._asked.created_at)
        if message is not None:
            yield from self._close(message, completion.text, message_status(outcome.status))
        yield from self._event(f"response.{outcome.status}", response=self._response(outcome))

    def _begin(self) -> Iterator[Event]:
        if not self._has_begun:
            self._has_begun = True
            yield from self._event("response.in_progress", response=self._response(Outcome("in_progress", [])))

    def _delta(self, message: "_Message", text: str) -> Iterator[Event]:
        """Written out: of this event there are thousands a second."""
        self._number += 1
        if self._number > self._after:
            data = f'{message.delta_head}{self._number},"delta":{json.dumps(text, ensure_ascii=False)}}}'
            yield Event(self._number, "response.output_text.delta", data)

    def _open(self, entry_id: str) -> "_Message":
        epoch, _ = split_stream_id(entry_id)
        self._message = _Message(item_id(self._request_id, epoch), self._num_items)
        self._num_items += 1
        return self._message

    def _added(self, message: "_Message") -> Iterator[Event]:
        item = message_item(message.item_id, None, "in_progress")
        yield from self._event("response.output_item.added", output_index=message.index, item=item)
        yield from self._event("response.content_part.added", **message.place, part=text_part(""))

    def _close(self, message: "_Message", text: str, status: MessageStatus) -> Iterator[Event]:
        yield from self._event("response.output_text.done", **message.place, text=text, logprobs=[])
        yield from self._event("response.content_part.done", **message.place, part=text_part(text))
        item = message_item(message.item_id, text, status)
        yield from self._event("response.output_item.done", output_index=message.index, item=item)

    def _event(self, kind: str, **fields: object) -> Iterator[Event]:
        self._number += 1
        if self._number > self._after:
            data = {"type": kind, "sequence_number": self._number, **fields}
            yield Event(self._number, kind, json.dumps(data, ensure_ascii=False, separators=(",", ":")))

    def _response(self, outcome: Outcome) -> Fields:
        return response_object(self._request_id, self._asked, outcome)


class _Message:
    """The message that is being told; `index`: of the item among the response's."""

    def __init__(self, item: str, index: int) -> None:
        self.item_id = item
        self.index = index
        self.texts: list[str] = []
        self.place: Fields = {"item_id": item, "output_index": index, "content_index": 0}
        self.delta_head = (
            f'{{"type":"response.output_text.delta","item_id":"{item}","output_index":{index},"content_index":0,'
            '"logprobs":[],"sequence_number":'
        )
