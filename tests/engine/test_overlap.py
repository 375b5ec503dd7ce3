"""The overlapped loop and the plain one: the same tokens, texts, logprobs and finish reasons, whatever happens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill_worker.engine.ahead import HostLauncher
from tokenmill_worker.engine.api import EngineConfig, EngineRequest, FinishReason, RequestOutput, SamplingParams
from tokenmill_worker.engine.batch import Draws, Launch, PackedBatch, Sampled
from tokenmill_worker.engine.echo import EchoRunner, EchoTokenizer, sample
from tokenmill_worker.engine.engine import Engine
from tokenmill_worker.engine.offline import OutputDraft

from tests.engine.harness import MAX_STEPS, Spy, finish, make_engine, make_request

MARK = 0xFE  # no UTF-8 has this byte, so the echo model never says it
RAISING, NOT_A_NUMBER = ord("R"), ord("N")
PROMPTS = ("Why is the sky blue? " * 4, "abc", "Why is the sky blue? " * 3 + "Tell me.", "x" * 33)


@dataclass(frozen=True)
class Arrival:
    """A request that comes before a step, and perhaps what ends it before a later one."""

    step: int
    request: EngineRequest
    ends_after: int | None = None
    reason: FinishReason = "cancelled"


class Faulty(Spy):
    """A prompt with the mark and an R fails its whole step; one with an N draws from what is no number."""

    def run(self, batch: PackedBatch) -> Sequence[Sampled]:
        rows = list(batch.samples)
        if any({MARK, RAISING} <= set(row.prompt_token_ids.tolist()) for row in rows):
            raise RuntimeError("the kernel did not like that")
        drawn = list(super().run(batch))
        for index, row in enumerate(rows):
            if {MARK, NOT_A_NUMBER} <= set(row.prompt_token_ids.tolist()) and row.position >= 3:
                drawn[index] = sample(np.full((1, 256), np.nan), [row])[0]
        return drawn


def run(engine: Engine, arrivals: Sequence[Arrival]) -> dict[str, RequestOutput]:
    """Every invariant checked after every step."""
    drafts = {arrival.request.request_id: OutputDraft(arrival.request) for arrival in arrivals}
    for step in range(MAX_STEPS):
        for arrival in arrivals:
            if arrival.step == step:
                engine.add_request(arrival.request)
            if arrival.ends_after is not None and arrival.step + arrival.ends_after == step:
                engine.cancel(arrival.request.request_id, arrival.reason)
        for event in engine.step():
            drafts[event.request_id].add(event)
        engine.check_integrity()
        if not engine.has_work() and step > max(arrival.step for arrival in arrivals):
            return {request_id: draft.output() for request_id, draft in drafts.items()}
    raise AssertionError("the engine makes no progress")


def assert_same(overlapped: RequestOutput, plain: RequestOutput) -> None:
    """Where a request was ended by another's word, or by that of its own other choice, one loop may be further on."""
    reasons = {choice.finish_reason for output in (overlapped, plain) for choice in output.choices}
    if "cancelled" not in reasons and (overlapped.error is None or len(plain.choices) == 1):
        assert (overlapped.choices, overlapped.error) == (plain.choices, plain.error)
        return
    for ours, theirs in zip(overlapped.choices, plain.choices, strict=True):
        common = min(len(ours.token_ids), len(theirs.token_ids))
        assert ours.token_ids[:common] == theirs.token_ids[:common]


every_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.3]),
    top_k=st.sampled_from([0, 6]),
    top_p=st.sampled_from([1.0, 0.9]),
    max_tokens=st.integers(1, 50),
    stop=st.sampled_from([(), ("e", " s"), ("ou",)]),
    stop_token_ids=st.sampled_from([(), (ord("s"),)]),
    seed=st.sampled_from([None, 3]),
    logprobs=st.sampled_from([None, 1]),
    n=st.sampled_from([1, 1, 1, 3]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.0, 0.5]),
    logit_bias=st.sampled_from([{}, {}, {ord("e"): 3.0}]),
)


@st.composite
def arrivals(draw: st.DrawFn) -> list[Arrival]:
    drawn = []
    for index in range(draw(st.integers(1, 7))):
        params = draw(every_params)
        params = replace(params, min_tokens=draw(st.integers(0, min(4, params.max_tokens))))
        prompt = [*draw(st.sampled_from(PROMPTS)).encode()]
        prompt += draw(st.sampled_from([[], [], [], [], [MARK, RAISING], [MARK, NOT_A_NUMBER]]))
        request = make_request(prompt, params, request_id=f"{index}", priority=draw(st.integers(0, 1)))
        ends_after = draw(st.sampled_from([None, None, None, 1, 4, 11]))
        drawn.append(Arrival(draw(st.integers(0, 9)), request, ends_after))
    return drawn


@settings(max_examples=60)
@given(
    work=arrivals(),
    num_pages=st.integers(8, 40),
    budget=st.sampled_from([3, 16, 64, 300]),
    caching=st.booleans(),
)
def test_any_work_ends_as_in_the_plain_loop(work: list[Arrival], num_pages: int, budget: int, caching: bool) -> None:
    outputs = [
        run(
            make_engine(
                max_num_seqs=6,
                max_num_batched_tokens=budget,
                num_pages=num_pages,
                enable_prefix_caching=caching,
                overlap=overlap,
                runner=Faulty(EchoRunner(num_pages=num_pages, max_model_len=250)),
            ),
            work,
        )
        for overlap in (True, False)
    ]
    for arrival in work:
        ours, plain = (output[arrival.request.request_id] for output in outputs)
        assert_same(ours, plain)


def requests(count: int = 5, **params: object) -> list[EngineRequest]:
    own = SamplingParams(max_tokens=30, logprobs=1, **params)  # type: ignore[arg-type]  # whatever a test asks for
    return [make_request(f"request {index} " * (3 * index + 1), own, request_id=f"r{index}") for index in range(count)]


def test_a_step_is_launched_before_the_one_before_it_is_read() -> None:
    log: list[str] = []

    class Logged:
        def __init__(self, number: int, launch: Launch) -> None:
            self.number, self.launch = number, launch

        def read(self) -> Draws:
            log.append(f"read {self.number}")
            return self.launch.read()

    engine = make_engine(overlap=True)
    inner = engine._launcher

    class Logging:
        num = 0

        def launch(self, batch: PackedBatch) -> Launch:
            self.num += 1
            log.append(f"launch {self.num}")
            return Logged(self.num, inner.launch(batch))

    engine._launcher = Logging()
    finish(engine, make_request("abc", SamplingParams(max_tokens=3)))
    assert log == ["launch 1", "launch 2", "read 1", "launch 3", "read 2", "read 3"]


def test_a_token_that_nobody_has_read_reaches_the_next_step_as_a_place_in_the_last_one() -> None:
    engine = make_engine(overlap=True, max_num_batched_tokens=300)
    batches: list[PackedBatch] = []
    inner = engine._launcher

    class Watching:
        def launch(self, batch: PackedBatch) -> Launch:
            batches.append(batch)
            return inner.launch(batch)

    engine._launcher = Watching()
    finish(engine, *requests(3))
    assert not batches[0].carried
    assert [len(batch.carried.tokens) for batch in batches[1:4]] == [3, 3, 3]


def test_a_draw_that_depends_on_earlier_ones_waits_until_they_are_known() -> None:
    work = requests(frequency_penalty=0.5)
    spy = Spy(EchoRunner(num_pages=256, max_model_len=1024))
    outputs = finish(make_engine(overlap=True, runner=spy), *work)
    assert outputs == finish(make_engine(), *work)
    assert not any(batch.carried for batch in spy.batches)


def test_a_row_that_ended_takes_part_once_too_often_and_says_nothing_more() -> None:
    request = make_request("abc", SamplingParams(max_tokens=200, stop=("e",)))
    spies = [Spy(EchoRunner(num_pages=256, max_model_len=1024)) for _ in range(2)]
    outputs = [finish(make_engine(overlap=spy is spies[0], runner=spy), request)["r"] for spy in spies]
    assert outputs[0].choices == outputs[1].choices
    assert outputs[0].finish_reason == "stop"
    assert len(spies[0].batches) == len(spies[1].batches) + 1


def test_a_row_that_reaches_max_tokens_takes_part_no_more() -> None:
    spies = [Spy(EchoRunner(num_pages=256, max_model_len=1024)) for _ in range(2)]
    for spy in spies:
        finish(make_engine(overlap=spy is spies[0], runner=spy), *requests())
    assert len(spies[0].batches) == len(spies[1].batches)
    assert sum(batch.num_tokens for batch in spies[0].batches) == sum(batch.num_tokens for batch in spies[1].batches)


class OutOfMemoryError(RuntimeError):
    """Named like torch's, which the engine knows by name."""


class SmallDevice(Spy):
    """Runs out of memory above two rows."""

    def run(self, batch: PackedBatch) -> Sequence[Sampled]:
        if batch.num_rows > 2:
            raise OutOfMemoryError("no memory left")
        return super().run(batch)


def test_a_launch_without_memory_preempts_the_youngest_and_fails_nobody() -> None:
    engine = make_engine(overlap=True, runner=SmallDevice(EchoRunner(num_pages=256, max_model_len=1024)))
    outputs = finish(engine, *requests())
    assert engine.statistics().num_preemptions > 0
    assert {name: out.choices for name, out in outputs.items()} == {
        name: out.choices for name, out in finish(make_engine(), *requests()).items()
    }


def test_a_step_that_fails_when_it_is_read_costs_nobody_a_token() -> None:
    engine = make_engine(overlap=True)
    inner = engine._launcher

    class Failing:
        def read(self) -> Draws:
            raise RuntimeError("told late")

    class FailsOnce:
        num = 0

        def launch(self, batch: PackedBatch) -> Launch:
            self.num += 1
            launch = inner.launch(batch)
            return Failing() if self.num == 9 else launch

    engine._launcher = FailsOnce()
    outputs = finish(engine, *requests())
    assert {name: out.choices for name, out in outputs.items()} == {
        name: out.choices for name, out in finish(make_engine(), *requests()).items()
    }


@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_token_drawn_anew_takes_back_what_was_launched_with_the_other(every: int) -> None:
    """As a sampler does that looks at few candidates first, and at all of them when they did not suffice."""
    engine = make_engine(overlap=True, num_pages=40)
    inner = engine._launcher

    class Redrawn:
        def __init__(self, drawn: Draws, where: Sequence[int]) -> None:
            self.drawn = replace(drawn, redrawn=frozenset(where))

        def read(self) -> Draws:
            return self.drawn

    class Guessing:
        num = 0

        def launch(self, batch: PackedBatch) -> Launch:
            self.num += 1
            drawn = inner.launch(batch).read()
            where = range(self.num % every, len(drawn), every)
            guessed = drawn.token_ids.copy()
            guessed[list(where)] = 0
            inner._last = guessed  # type: ignore[attr-defined]  # HostLauncher
            return Redrawn(drawn, where)

    engine._launcher = Guessing()
    work = [*requests(4), make_request("of three", SamplingParams(max_tokens=40, n=3), request_id="three")]
    outputs = finish(engine, *work)
    assert {name: out.choices for name, out in outputs.items()} == {
        name: out.choices for name, out in finish(make_engine(), *work).items()
    }


@pytest.mark.parametrize("end", ["cancel", "drop"])
def test_a_request_that_ends_while_its_step_is_in_flight_may_come_back_under_its_name(end: str) -> None:
    engine = make_engine(overlap=True)
    request = requests(1)[0]
    expected = finish(make_engine(), request)["r0"]
    engine.add_request(request)
    for _ in range(4):
        engine.step()
    ends: dict[str, Callable[[str], None]] = {"cancel": engine.cancel, "drop": engine.drop}
    ends[end]("r0")
    if end == "cancel":
        assert [event.finish_reason for event in engine.step()] == ["cancelled"]
    assert finish(engine, request)["r0"].choices == expected.choices
    assert engine.statistics().num_free_pages == engine.statistics().num_pages


def test_an_interrupt_while_a_step_is_read_loses_nothing() -> None:
    engine = make_engine(overlap=True)
    inner = engine._launcher
    drafts = {request.request_id: OutputDraft(request) for request in requests()}

    class Interrupted:
        def __init__(self, launch: Launch) -> None:
            self.launch, self.num = launch, 0

        def read(self) -> Draws:
            self.num += 1
            if self.num == 1:
                raise KeyboardInterrupt
            return self.launch.read()

    class Interrupting:
        def launch(self, batch: PackedBatch) -> Launch:
            return Interrupted(inner.launch(batch))

    engine._launcher = Interrupting()
    for request in requests():
        engine.add_request(request)
    while engine.has_work():
        try:
            events = engine.step()
        except KeyboardInterrupt:
            continue
        for event in events:
            drafts[event.request_id].add(event)
        engine.check_integrity()
    expected = finish(make_engine(), *requests())
    assert {name: draft.output().choices for name, draft in drafts.items()} == {
        name: out.choices for name, out in expected.items()
    }


@pytest.mark.parametrize("can_launch", [True, False])
def test_auto_is_overlapped_where_a_device_can_be_given_a_step_ahead(can_launch: bool) -> None:
    """Only then the first step's tokens come with the second. Processes that share a model cannot."""
    runner = EchoRunner(num_pages=16)
    runner.device = "cuda:0"
    if can_launch:
        vars(runner)["launch"] = HostLauncher(runner).launch
    engine = Engine(EngineConfig(model="echo"), runner=runner, tokenizer=EchoTokenizer())
    engine.add_request(make_request("Hello"))
    assert [event.request_id for event in engine.step()] == ([] if can_launch else ["r"])
