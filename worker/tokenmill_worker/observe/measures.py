"""The distributions of a worker: fed after each step and at each request's end, looked at by whoever shows them."""

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

from tokenmill_worker.engine.api import FinishReason, TokenEvent
from tokenmill_worker.observe.histogram import ROWS, SECONDS, STEP_SECONDS, TOKENS, Histogram

if TYPE_CHECKING:
    from tokenmill_worker.engine.engine import Engine
    from tokenmill_worker.queue.outbox import Ending

FINISH_REASONS: tuple[FinishReason, ...] = get_args(FinishReason)


class Measures:
    """`stepped` is for the engine's thread alone, `ended` for any."""

    def __init__(self) -> None:
        self.step_time = Histogram(STEP_SECONDS)
        self.inter_token = Histogram(STEP_SECONDS)
        self.rows = Histogram(ROWS)
        self.step_tokens = Histogram(TOKENS)
        self.queue_time = Histogram(SECONDS)
        self.first_token = Histogram(SECONDS)
        self.per_output_token = Histogram(STEP_SECONDS)
        self.inference_time = Histogram(SECONDS)
        self.latency = Histogram(SECONDS)
        self.prompt_tokens = Histogram(TOKENS)
        self.generation_tokens = Histogram(TOKENS)
        self.num_ended = dict.fromkeys(FINISH_REASONS, 0)
        self._num_decoded = self._num_prefilled = self._num_steps = 0
        self._ended_s: float | None = None  # the step before, if its rows go on in this one
        self._lock = threading.Lock()

    # After each step

    def stepped(self, engine: "Engine", events: Sequence[TokenEvent], started_s: float) -> None:
        """`started_s` by time.perf_counter. A call of `step` that found nothing to run counts for nothing.

        Between two tokens of a row lies what lies between the ends of two steps: it is counted at once for all rows
        that decoded.
        """
        now = engine.statistics()
        if now.num_steps == self._num_steps:
            self._ended_s = None
            return
        ended_s = time.perf_counter()
        self.step_time.observe(ended_s - started_s)
        self.rows.observe(now.num_running)
        num_decoded = now.num_decode_tokens - self._num_decoded
        self.step_tokens.observe(num_decoded + now.num_prefill_tokens - self._num_prefilled)
        if self._ended_s is not None and num_decoded:
            self.inter_token.observe(ended_s - self._ended_s, times=num_decoded)
        self._num_steps = now.num_steps
        self._num_decoded, self._num_prefilled = now.num_decode_tokens, now.num_prefill_tokens
        self._ended_s = ended_s if now.num_running else None

    # At a request's end

    def ended(self, ending: "Ending") -> None:
        """Its last word is with the server. What a request never came to is not counted as zero."""
        with self._lock:
            self.num_ended[ending.finish_reason] += 1
            self.prompt_tokens.observe(ending.usage.prompt_tokens)
            self.generation_tokens.observe(ending.usage.completion_tokens)
            self._observe_times(ending)

    def _observe_times(self, ending: "Ending") -> None:
        queued, first, total = ending.timings.queued, ending.timings.first_token, ending.timings.total
        if queued is not None:
            self.queue_time.observe(queued / 1000)
        if first is not None:
            self.first_token.observe(first / 1000)
        if total is None:
            return
        self.latency.observe(total / 1000)
        if queued is not None:
            self.inference_time.observe(max(0.0, total - queued) / 1000)
        if first is not None and ending.usage.completion_tokens > 1:
            self.per_output_token.observe(max(0.0, total - first) / 1000 / (ending.usage.completion_tokens - 1))
