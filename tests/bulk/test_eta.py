"""When a run will end, against a simulated machine whose end is known."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from tokenmill.bulk.eta import LOOK_INTERVAL_S, Estimator
from tokenmill.bulk.lengths import Lengths
from tokenmill.bulk.pulse import Pulse, StepLaw, WorkerTold
from tokenmill_worker.engine.api import EngineRequest, SamplingParams
from tokenmill_worker.engine.cost_model import StepShape

from benchmarks.workload import workload
from tests.support.machine import Law, SimulatedClock, SimulatedMachine, simulated_engine, small_cpu

NUM_SLOTS = 64
SHARES = (0.1, 0.25, 0.5)
TELL_S = 1.0  # between two words of a worker


def two_cores(shape: StepShape) -> float:
    """Seconds, as SmolLM2 took in a bulk run of workload A."""
    return (
        0.018
        + 0.00065 * shape.num_samples
        + 0.00048 * (shape.num_tokens - shape.num_samples)
        + 6e-7 * shape.num_context
    )


class Row(NamedTuple):
    """`length` tokens are answered, by itself where that is less than `max_tokens`."""

    prompt: Sequence[int]
    length: int
    max_tokens: int | None


class Told(NamedTuple):
    at_s: float
    eta_s: float | None


class Replay:
    """A run as BulkRun drives it, over an engine whose steps take the time that a law says."""

    def __init__(
        self,
        folder: Path,
        rows: Sequence[Row],
        *,
        window: int,
        law: Law = two_cores,
        knows: bool = True,
        sees: bool = True,
    ) -> None:
        self._clock = SimulatedClock()
        self._engine = simulated_engine(
            SimulatedMachine(self._clock, law), self._clock, folder, max_num_seqs=NUM_SLOTS, max_num_batched_tokens=512
        )
        self._knows, self._sees = knows, sees
        self._estimator = Estimator()
        self._rows = {str(number): row for number, row in enumerate(rows)}
        self._unsent = iter(self._rows.items())
        self._window = window
        self._in_flight: dict[str, Row] = {}
        self._told_s = self._looked_s = 0.0
        self._word = WorkerTold(NUM_SLOTS)
        self.told: list[Told] = []

    def run(self) -> float:
        """When it ended. `told` has an ETA for each number of rows settled."""
        self._look()
        self._fill()
        while self._in_flight:
            for event in self._engine.step():
                if event.finish_reason is not None:
                    self._settle(event.request_id)
            self._look()
            self._fill()
        return self._clock.now_s

    def _settle(self, name: str) -> None:
        row = self._in_flight.pop(name)
        self._estimator.end(
            name,
            num_tokens=row.length,
            num_prompt_tokens=len(row.prompt),
            is_cut=row.length == row.max_tokens,
            now_s=self._clock.now_s,
        )
        num_unsent = len(self._rows) - len(self.told) - 1 - len(self._in_flight)
        self.told.append(Told(self._clock.now_s, self._estimator.eta_s(num_unsent, now_s=self._clock.now_s)))

    def _fill(self) -> None:
        while len(self._in_flight) < self._window and (item := next(self._unsent, None)) is not None:
            name, row = item
            self._in_flight[name] = row
            params = SamplingParams(max_tokens=row.length)  # the model of this machine ends no answer by itself
            self._engine.add_request(EngineRequest(request_id=name, prompt_token_ids=row.prompt, params=params))
            self._estimator.begin(name, row.max_tokens, now_s=self._clock.now_s)

    def _look(self) -> None:
        """The worker speaks at whole seconds, most of them within a step; we look between two."""
        now_s = self._clock.now_s
        if now_s // TELL_S > self._told_s // TELL_S:
            self._told_s = now_s // TELL_S * TELL_S
            self._word = self._said(self._told_s) if self._knows else WorkerTold(NUM_SLOTS)
        if now_s - self._looked_s >= LOOK_INTERVAL_S:
            self._looked_s = now_s
            self._estimator.hear({"worker": self._word}, now_s=now_s)

    def _said(self, told_s: float) -> WorkerTold:
        now = self._engine.statistics()
        return WorkerTold(
            NUM_SLOTS,
            told_s,
            now.num_steps,
            now.num_decode_tokens,
            now.num_prefill_tokens,
            now.num_running,
            tuple((rows, ms / 1000) for rows, ms in now.decode_step_ms) if self._sees else (),
        )


def errors(
    folder: Path,
    rows: Sequence[Row],
    *,
    window: int,
    law: Law = two_cores,
    knows: bool = True,
    sees: bool = True,
) -> list[float]:
    """Of the ETA at 10, 25 and 50 % of the rows, as a share of the truth; negative: told too early."""
    replay = Replay(folder, rows, window=window, law=law, knows=knows, sees=sees)
    ended_s = replay.run()
    told = [replay.told[round(share * len(rows))] for share in SHARES]
    assert all(one.eta_s is not None for one in told), "something is known by now"
    return [(one.eta_s or 0.0) / (ended_s - one.at_s) - 1 for one in told]


def asked(num: int, *, seed: int = 0, max_tokens: int | None = None) -> list[Row]:
    """Workload A's rows; with `max_tokens` their answers end by themselves."""
    work = workload(num, seed=seed)
    prompts = [text.encode()[: 20 + len(text) // 4] for text in work.prompts]  # a byte is a token here
    both = zip(prompts, work.max_tokens, strict=True)
    return [Row(list(text), length, max_tokens or length) for text, length in both]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_end_of_workload_a_is_known_to_15_percent(tmp_path: Path, seed: int) -> None:
    found = errors(tmp_path, asked(64, seed=seed), window=64)
    assert max(map(abs, found)) < 0.15, found


def test_a_worker_that_tells_nothing_of_its_steps_is_known_to_15_percent_too(tmp_path: Path) -> None:
    found = errors(tmp_path, asked(64), window=64, sees=False)
    assert max(map(abs, found)) < 0.15, found


def test_a_machine_whose_steps_are_split_otherwise_is_known_to_a_third(tmp_path: Path) -> None:
    found = errors(tmp_path, asked(64), window=64, law=small_cpu)
    assert max(map(abs, found)) < 0.35, found


@pytest.mark.parametrize("max_tokens", [None, 512], ids=["cut short", "ending by themselves"])
@pytest.mark.parametrize("num_rows", [1_000, pytest.param(2_000, marks=pytest.mark.slow)])
def test_the_end_of_a_run_through_a_window_is_known_to_15_percent(
    tmp_path: Path, num_rows: int, max_tokens: int | None
) -> None:
    found = errors(tmp_path, asked(num_rows, max_tokens=max_tokens), window=128)
    assert max(map(abs, found)) < 0.15, found


def test_workers_that_tell_no_totals_leave_the_speed_of_finished_rows(tmp_path: Path) -> None:
    found = errors(tmp_path, asked(200), window=128, knows=False)
    assert max(map(abs, found)) < 1.0, found


def test_nothing_is_told_before_a_row_was_answered_or_while_no_worker_is_there() -> None:
    estimator = Estimator()
    estimator.hear({"worker": WorkerTold(4)}, now_s=0.0)
    estimator.begin("row", 10, now_s=0.0)
    assert estimator.eta_s(5, now_s=10.0) is None
    estimator.end("row", num_tokens=10, num_prompt_tokens=3, is_cut=True, now_s=12.0)
    assert estimator.eta_s(5, now_s=12.0) is not None
    estimator.hear({}, now_s=14.0)
    assert estimator.eta_s(5, now_s=14.0) is None


def test_between_two_looks_the_time_left_runs_down() -> None:
    estimator = Estimator()
    estimator.hear({"worker": WorkerTold(1)}, now_s=0.0)
    estimator.begin("row", 10, now_s=0.0)
    estimator.end("row", num_tokens=10, num_prompt_tokens=3, is_cut=True, now_s=10.0)
    first, second = (estimator.eta_s(1, now_s=now_s) for now_s in (10.0, 10.5))
    assert first == pytest.approx(10.0)
    assert second == pytest.approx(9.5)


def test_rows_of_others_take_their_slots() -> None:
    def left_s(num_running: int) -> float | None:
        estimator = Estimator()
        for second in range(10):
            word = WorkerTold(8, 5.0 + second, 100 * second, 800 * second, 0, num_running)
            estimator.hear({"worker": word}, now_s=float(second))
        estimator.begin("row", 10, now_s=9.0)
        estimator.end("row", num_tokens=10, num_prompt_tokens=0, is_cut=True, now_s=9.1)
        return estimator.eta_s(800, now_s=9.1)

    alone, beside = left_s(2), left_s(6)
    assert alone is not None
    assert beside is not None
    assert beside == pytest.approx(3 * alone, rel=0.1)


def test_what_is_not_finished_makes_answers_longer() -> None:
    lengths = Lengths()
    for length in (10, 20, 30):
        lengths.add(length, is_cut=False)
    assert lengths.survival([]).length_at(0.5) == 20
    assert lengths.survival([25] * 5).length_at(0.5) == 30
    assert lengths.survival([25] * 5).share_beyond(10) == pytest.approx(7 / 8)


def test_of_answers_that_were_all_cut_short_nobody_knows_an_end() -> None:
    lengths = Lengths()
    lengths.add(16, is_cut=True)
    assert lengths.survival([5, 9]).length_at(0.5) == math.inf


def test_shares_of_a_step_are_told_apart_once_the_batch_has_changed_its_size() -> None:
    pulse, now, prompts = Pulse(), [0.0, 0, 0], 0
    for num_rows in range(60, 0, -1):
        now = [now[0] + 10 * (0.05 + 0.001 * num_rows), now[1] + 10, now[2] + 10 * num_rows]
        prompts += 500 if num_rows % 7 == 0 else 0
        word = WorkerTold(64, now[0] + 0.0005 * prompts, int(now[1]), int(now[2]), prompts, num_rows)
        pulse.hear({"worker": word}, now_s=word.told_s)
    law = pulse.law()
    assert law is not None
    assert law.fixed_s == pytest.approx(0.05, rel=0.1)
    assert law.per_row_s == pytest.approx(0.001, rel=0.15)
    assert law.per_prompt_token_s == pytest.approx(0.0005, rel=0.15)


def test_a_step_of_few_rows_is_known_from_a_run_before() -> None:
    law = StepLaw(0.020, 0.001, 0.0, seen=((2.0, 0.010), (62.0, 0.040)))
    assert law.step_s(32) == pytest.approx(0.025)
    assert law.step_s(1) == pytest.approx(0.010 * 21 / 22)
    assert law.step_s(124) == pytest.approx(0.040 * 144 / 82)
    assert law._replace(seen=()).step_s(30) == pytest.approx(0.050)


def test_a_worker_that_started_anew_is_not_taken_for_one_that_went_back() -> None:
    pulse = Pulse()
    for told_s, num_steps in ((10.0, 100), (11.0, 120), (2.0, 5), (3.0, 25)):
        pulse.hear({"worker": WorkerTold(64, told_s, num_steps, 64 * num_steps, 0, 64)}, now_s=told_s)
    assert pulse.num_steps(3.0) == pytest.approx(40)
