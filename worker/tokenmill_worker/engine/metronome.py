"""Times an engine's steps, and asks the pacer what the next one may hold. Without a pacer it only times."""

import time
from collections.abc import Callable, Mapping

from tokenmill_worker.engine.api import EngineConfig
from tokenmill_worker.engine.batch import Launcher, PackedBatch, Runner
from tokenmill_worker.engine.calibration import calibrated
from tokenmill_worker.engine.cost_model import CostModel, StepShape
from tokenmill_worker.engine.pacer import SMOOTHING, Limits, Pacer, Targets
from tokenmill_worker.engine.scheduler import Scheduled, Scheduler

Clock = Callable[[], float]


class Metronome:
    """`begin` and `end` enclose a step of the engine, `ran` says which scheduled step was committed in it.

    `is_overlapped`: that one was launched a step ago, so its time is that between two ends.
    """

    def __init__(self, pacer: Pacer | None, *, is_overlapped: bool, clock: Clock = time.perf_counter) -> None:
        self.clock = clock
        self.observed_s = self.predicted_s = 0.0  # smoothed
        self._pacer = pacer
        self._is_overlapped = is_overlapped
        self._began_s = self._ended_s = clock()
        self._has_gone_on = False  # something ran when the last step ended
        self._ran: Scheduled | None = None
        self._decoding: dict[int, tuple[float, float]] = {}  # of rows' numbers with so many bits: rows, seconds

    @property
    def limits(self) -> Limits | None:
        """Of the last step; None: there was none, or none but the engine's own."""
        return None if self._pacer is None else self._pacer.limits

    @property
    def decode_step_ms(self) -> tuple[tuple[float, float], ...]:
        """Rows, and what a step of so many takes of late with no prompt in it: one pair for each doubling of rows."""
        pairs = sorted(self._decoding.values())
        return tuple((round(rows, 2), round(seconds * 1000, 3)) for rows, seconds in pairs)

    def begin(self) -> None:
        self._began_s = self.clock()

    def choose(self, scheduler: Scheduler) -> Limits | None:
        """For the step to be scheduled."""
        self._has_gone_on = bool(scheduler.running)
        if self._pacer is None:
            return None
        most = Limits(scheduler.max_num_batched_tokens, scheduler.max_num_rows)
        return self._pacer.choose(scheduler.load(self._began_s), most)

    def ran(self, step: Scheduled) -> None:
        self._ran = step if step else None

    def end(self) -> None:
        ended_s = self.clock()
        between_s = self._began_s - self._ended_s if self._has_gone_on else 0.0
        step_s = ended_s - self._began_s
        if self._is_overlapped:
            step_s, between_s = step_s + between_s, 0.0
        if self._ran is not None:
            self._observe(self._ran, step_s, between_s)
        self._ran, self._ended_s = None, ended_s

    def _observe(self, step: Scheduled, step_s: float, between_s: float) -> None:
        self.observed_s += (SMOOTHING if self.observed_s else 1.0) * (step_s - self.observed_s)
        num_rows = len(step.num_tokens)
        if step.num_tokens.sum() == num_rows:
            self._note_decoding(num_rows, step_s + between_s)
        if self._pacer is None:
            return
        shape, num_decoding = shape_of(step)
        predicted_s = self._pacer.predict(shape)
        self.predicted_s += (SMOOTHING if self.predicted_s else 1.0) * (predicted_s - self.predicted_s)
        self._pacer.observe(shape, num_decoding, step_s, between_s)

    def _note_decoding(self, num_rows: int, seconds: float) -> None:
        rows, known_s = self._decoding.get(num_rows.bit_length(), (float(num_rows), seconds))
        self._decoding[num_rows.bit_length()] = (
            rows + SMOOTHING * (num_rows - rows),
            known_s + SMOOTHING * (seconds - known_s),
        )


def shape_of(step: Scheduled) -> tuple[StepShape, int]:
    """What its time depends on, and how many of its rows decode."""
    num_tokens, ends = step.num_tokens, step.context_lens
    is_chunk = num_tokens > 1
    chunks, chunk_ends = num_tokens[is_chunk].astype("int64"), ends[is_chunk]
    pairs = int((chunks * (2 * chunk_ends - chunks + 1)).sum()) // 2
    num_context = int(ends.sum()) - int(chunk_ends.sum())
    shape = StepShape(int(num_tokens.sum()), int(step.is_sampled.sum()), num_context, pairs)
    return shape, len(num_tokens) - len(chunks)


def run_whole(runner: Runner, launcher: Launcher | None) -> Callable[[PackedBatch], object]:
    """Runs a batch as the engine's steps do, and waits for it."""
    return runner.run if launcher is None else lambda batch: launcher.launch(batch).read()


def pacer_for(
    config: EngineConfig,
    runner: Runner,
    computing: Mapping[str, str],
    run: Callable[[PackedBatch], object],
    *,
    clock: Clock,
) -> Pacer | None:
    """None without a time per token to keep to: what else there is cannot come sooner than it does."""
    if config.target_tpot_ms is None:
        return None
    tpot_s = config.target_tpot_ms / 1000
    ttft_s = None if config.target_ttft_ms is None else config.target_ttft_ms / 1000
    curve = calibrated(config, runner, computing, run, clock=clock)
    return Pacer(CostModel(curve), Targets(tpot_s, ttft_s))
