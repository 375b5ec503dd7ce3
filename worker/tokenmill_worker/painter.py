"""Makes a picture of the batch from the engine's steps, while somebody looks. Knows no server and no thread."""

from collections import deque
from collections.abc import Iterable

import numpy as np
from tokenmill.wire.messages import BatchPicture, RowBar, StepShape

from tokenmill_worker.engine.batch import Bools, Ints
from tokenmill_worker.engine.engine import Engine
from tokenmill_worker.engine.scheduler import Scheduled
from tokenmill_worker.engine.sequence import Sequence
from tokenmill_worker.engine.step_log import EndSeen, StepLog, StepSeen

NUM_STEPS = 240  # in a picture: at 50 steps a second, the last five seconds
MOST_BARS = 400  # that have left; with short answers many do within those steps


class _Bar:
    """A sequence in the batch. Of one that runs, `last` and `num_done` are kept by row, for all rows at once."""

    def __init__(self, sequence: Sequence, row: int, first: int) -> None:
        self.sequence = sequence
        self.row = row
        self.first = self.last = first
        self.num_done = 0
        self.prefill: list[tuple[int, int]] = []
        self.decode_from: int | None = None
        self.finish_reason: str | None = None

    def shown_from(self, step: int) -> RowBar:
        its = self.sequence
        return RowBar(
            self.row,
            its.request_id,
            its.index,
            self.first,
            self.last,
            its.n_prompt,
            self.num_done,
            its.max_total,
            tuple(chunk for chunk in self.prefill if chunk[0] >= step),
            self.decode_from,
            self.finish_reason,
        )


class Painter:
    """`look` begins or ends the watching, `picture` is what there was to see since. For one thread that is not the
    engine's.

    Most rows of most steps draw one token: those cost two array assignments a step, whatever their number. Only rows
    that join, prefill or end are looked at one by one.
    """

    def __init__(self, num_rows: int, max_num_batched_tokens: int) -> None:
        self.log: StepLog | None = None
        self._num_rows = num_rows
        self._max_num_batched_tokens = max_num_batched_tokens
        self._forget()

    def look(self, is_wanted: bool) -> StepLog | None:
        """The log that the engine shall write; None: nobody looks, so it need not."""
        if is_wanted and self.log is None:
            self._forget()
            self.log = StepLog()
        elif not is_wanted:
            self.log = None
        return self.log

    def picture(self) -> BatchPicture:
        self._follow(self.log.take() if self.log is not None else ())
        for bar in self._running.values():
            self._note(bar)
        first = self._step - len(self._shapes) + 1
        bars = [bar for bar in (*self._left, *self._running.values()) if bar.last >= first]
        bars.sort(key=lambda bar: bar.first)
        shown = tuple(bar.shown_from(first) for bar in bars)
        return BatchPicture(self._step, self._num_rows, self._max_num_batched_tokens, tuple(self._shapes), shown)

    def _forget(self) -> None:
        self._step, self._at_s = 0, 0.0
        self._shapes: deque[StepShape] = deque(maxlen=NUM_STEPS)
        self._running: dict[int, _Bar] = {}  # by row
        self._by_id: dict[tuple[str, int], _Bar] = {}
        self._left: deque[_Bar] = deque(maxlen=MOST_BARS)
        self._last: Ints = np.zeros(self._num_rows, dtype=np.int32)
        self._num_done: Ints = np.zeros(self._num_rows, dtype=np.int32)
        self._num_prompt: Ints = np.zeros(self._num_rows, dtype=np.int32)
        self._times_taken: Ints = np.full(self._num_rows, -1, dtype=np.int32)

    def _follow(self, seen: Iterable[StepSeen | EndSeen]) -> None:
        for news in seen:
            if isinstance(news, StepSeen):
                self._add_step(news.number, news.at_s, news.step)
            else:
                self._end(news)

    def _add_step(self, number: int, at_s: float, step: Scheduled) -> None:
        for index in np.flatnonzero(self._times_taken[step.rows] != step.times_taken).tolist():
            self._join(step, index, number)
        is_prefill: Bools = (step.num_tokens > 1) | (step.context_lens <= self._num_prompt[step.rows])
        for index in np.flatnonzero(is_prefill).tolist():
            self._running[int(step.rows[index])].prefill.append((number, int(step.num_tokens[index])))
        self._last[step.rows], self._num_done[step.rows] = number, step.context_lens
        self._add_shape(number, at_s, step, is_prefill)

    def _add_shape(self, number: int, at_s: float, step: Scheduled, is_prefill: Bools) -> None:
        if number != self._step + 1:  # the first, or some were missed: what lies between is not known
            self._shapes.clear()
        ms = round(1000 * (at_s - self._at_s), 1) if self._shapes else 0.0
        num_prefill = int(step.num_tokens[is_prefill].sum())
        self._shapes.append(StepShape(ms, num_prefill, int(step.num_tokens.sum()) - num_prefill))
        self._step, self._at_s = number, at_s

    def _join(self, step: Scheduled, index: int, number: int) -> None:
        """Unless the row was only rewound: then it goes on with one token, as if nothing had been."""
        sequence, row = step.sequences[index], int(step.rows[index])
        self._times_taken[row] = step.times_taken[index]
        before = self._running.get(row)
        is_rewound = step.num_tokens[index] == 1 and self._last[row] >= number - 1
        if before is not None and before.sequence is sequence and is_rewound:
            return
        if before is not None:
            self._leave(before)
        bar = _Bar(sequence, row, number)
        self._running[row] = self._by_id[sequence.request_id, sequence.index] = bar
        self._num_prompt[row] = sequence.n_prompt

    def _end(self, end: EndSeen) -> None:
        bar = self._by_id.get((end.request_id, end.index))  # None: it ended without ever having been seen in the batch
        if bar is not None:
            bar.finish_reason = end.finish_reason
            self._leave(bar)

    def _leave(self, bar: _Bar) -> None:
        self._note(bar)
        del self._running[bar.row]
        del self._by_id[bar.sequence.request_id, bar.sequence.index]
        self._left.append(bar)

    def _note(self, bar: _Bar) -> None:
        bar.last, bar.num_done = int(self._last[bar.row]), int(self._num_done[bar.row])
        if bar.num_done > bar.sequence.n_prompt and bar.decode_from is None:
            bar.decode_from = bar.prefill[-1][0] + 1 if bar.prefill else bar.first


class EngineEasel:
    """A painter beside an engine. `watch` and `picture` are for one thread; the engine has its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._painter = Painter(engine.config.max_num_seqs, engine.config.max_num_batched_tokens)

    def watch(self, is_wanted: bool) -> None:
        self._engine.step_log = self._painter.look(is_wanted)

    def picture(self) -> bytes | None:
        return self._painter.picture().encode() if self._painter.log is not None else None
