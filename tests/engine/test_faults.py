"""A fault costs the request that causes it. Its neighbours answer as if nothing had happened."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from tokenmill_worker.engine.api import EngineRequest, RowError, SamplingParams
from tokenmill_worker.engine.batch import PackedBatch, Sampled
from tokenmill_worker.engine.echo import EchoRunner, sample

from tests.engine.harness import Spy, finish, make_engine, make_request

MARK = 0xFE  # no UTF-8 has this byte, so the echo model never says it
PARAMS = SamplingParams(max_tokens=30, logprobs=1)


def requests(*, marked: bool = True) -> list[EngineRequest]:
    """Five requests of different lengths; the third carries the mark in its prompt."""
    all_of_them = [
        make_request([*b"request ", index] * (3 * index + 1), PARAMS, request_id=f"r{index}") for index in range(5)
    ]
    if marked:
        all_of_them[2] = make_request([*b"request " * 6, MARK], PARAMS, request_id="r2")
    return all_of_them


class Raising(Spy):
    """Fails the whole step when the mark is in it."""

    def run(self, batch: PackedBatch) -> Sequence[Sampled]:
        if MARK in batch.token_ids:
            raise RuntimeError("the kernel did not like that")
        return super().run(batch)


class NotANumber(Spy):
    """The marked row's logits are no numbers."""

    def run(self, batch: PackedBatch) -> Sequence[Sampled]:
        drawn = list(super().run(batch))
        for index, row in enumerate(batch.samples):
            if MARK in row.prompt_token_ids:
                drawn[index] = sample(np.full((1, 256), np.nan), [row])[0]
        return drawn


class OutOfMemoryError(RuntimeError):
    """Named like torch's, which the engine knows by name."""


class SmallDevice(Spy):
    """Runs out of memory above a number of rows."""

    def __init__(self, runner: EchoRunner, max_rows: int, error: Callable[[str], Exception]) -> None:
        super().__init__(runner)
        self.max_rows, self.error = max_rows, error

    def run(self, batch: PackedBatch) -> Sequence[Sampled]:
        if batch.num_rows > self.max_rows:
            raise self.error("no memory left")
        return super().run(batch)


def echo_runner(num_pages: int = 256) -> EchoRunner:
    return EchoRunner(num_pages=num_pages, max_model_len=1024)


@pytest.mark.parametrize(("faulty", "code"), [(Raising, "engine_error"), (NotANumber, "non_finite_logits")])
@pytest.mark.parametrize("budget", [16, 64])
def test_only_the_guilty_request_fails(faulty: type[Spy], code: str, budget: int) -> None:
    expected = finish(make_engine(), *requests(marked=False))
    outputs = finish(make_engine(runner=faulty(echo_runner()), max_num_batched_tokens=budget), *requests())
    guilty = outputs.pop("r2")
    assert (guilty.finish_reason, guilty.token_ids) == ("error", [])
    assert guilty.error is not None
    assert guilty.error.code == code
    for request_id, output in outputs.items():
        assert output == expected[request_id]


def test_the_message_names_the_exception() -> None:
    outputs = finish(make_engine(runner=Raising(echo_runner())), *requests())
    assert outputs["r2"].error == RowError("engine_error", "RuntimeError: the kernel did not like that")


def test_what_a_failed_request_computed_is_not_found_again() -> None:
    engine = make_engine(runner=NotANumber(echo_runner()))
    prompt = [*b"x" * 70, MARK]
    assert finish(engine, make_request(prompt))["r"].error is not None
    healthy = finish(engine, make_request("x" * 70))["r"]
    assert healthy.usage.cached_tokens == 0


def test_all_choices_of_a_failed_request_end_and_the_last_carries_the_usage() -> None:
    engine = make_engine(runner=NotANumber(echo_runner()))
    output = finish(engine, make_request([1, MARK], SamplingParams(max_tokens=4, n=3)))["r"]
    assert [choice.finish_reason for choice in output.choices] == ["error"] * 3
    assert output.usage.prompt_tokens == 2


class Poisoned(Spy):
    """One choice of three fails after some tokens."""

    def run(self, batch: PackedBatch) -> Sequence[Sampled]:
        drawn = list(super().run(batch))
        for index, row in enumerate(batch.samples):
            if row.params.n == 3 and row.position == 5 and row.row % 2:
                drawn[index] = Sampled(error=RowError("boom", "boom"))
        return drawn


def test_a_choice_that_fails_late_ends_its_request_and_keeps_what_was_told() -> None:
    request = make_request("abc", SamplingParams(max_tokens=20, n=3))
    healthy = finish(make_engine(), request)["r"]
    output = finish(make_engine(runner=Poisoned(echo_runner())), request)["r"]
    for choice, whole in zip(output.choices, healthy.choices, strict=True):
        assert choice.finish_reason == "error"
        assert choice.token_ids == whole.token_ids[: len(choice.token_ids)]


@pytest.mark.parametrize("error", [MemoryError, OutOfMemoryError])
def test_out_of_memory_makes_the_step_smaller_and_fails_nobody(error: Callable[[str], Exception]) -> None:
    expected = finish(make_engine(), *requests(marked=False))
    engine = make_engine(runner=SmallDevice(echo_runner(), 2, error))
    outputs = finish(engine, *requests(marked=False))
    assert engine.statistics().num_preemptions > 0
    for request_id, output in outputs.items():
        assert output.choices == expected[request_id].choices


def test_a_row_too_large_for_the_device_alone_fails() -> None:
    engine = make_engine(runner=SmallDevice(echo_runner(), 0, MemoryError))
    output = finish(engine, make_request("abc"))["r"]
    assert output.error == RowError("out_of_memory", "MemoryError: no memory left")


def test_an_interrupt_is_nobodys_fault_and_the_step_can_be_done_again() -> None:
    class Interrupted(Spy):
        def run(self, batch: PackedBatch) -> Sequence[Sampled]:
            if len(self.batches) == 4:
                self.batches.append(batch)
                raise KeyboardInterrupt
            return super().run(batch)

    engine = make_engine(runner=Interrupted(echo_runner()))
    for request in requests(marked=False):
        engine.add_request(request)
    tokens: dict[str, list[int]] = {f"r{index}": [] for index in range(5)}
    for event in [event for _ in range(4) for event in engine.step()]:
        tokens[event.request_id] += event.token_ids
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    while engine.has_work():
        for event in engine.step():
            tokens[event.request_id] += event.token_ids
    expected = finish(make_engine(), *requests(marked=False))
    assert {request_id: output.token_ids for request_id, output in expected.items()} == tokens


@pytest.mark.parametrize("how", ["cancel", "drop"])
def test_a_request_that_ends_while_its_step_runs_disturbs_nobody(how: str) -> None:
    class Meddling(Spy):
        def run(self, batch: PackedBatch) -> Sequence[Sampled]:
            if len(self.batches) == 6:
                getattr(engine, how)("r1")
            return super().run(batch)

    engine = make_engine(runner=Meddling(echo_runner()))
    for request in requests(marked=False):
        engine.add_request(request)
    tokens: dict[str, list[int]] = {f"r{index}": [] for index in range(5)}
    reasons = {}
    while engine.has_work():
        for event in engine.step():
            tokens[event.request_id] += event.token_ids
            reasons[event.request_id] = event.finish_reason
        engine.check_integrity()
    expected = finish(make_engine(), *requests(marked=False))
    assert reasons["r1"] == ("cancelled" if how == "cancel" else None)
    assert 0 < len(tokens["r1"]) < 30
    for request_id in ("r0", "r2", "r3", "r4"):
        assert tokens[request_id] == expected[request_id].token_ids


def test_a_pool_without_room_for_all_serves_them_one_after_the_other() -> None:
    engine = make_engine(num_pages=4, max_num_seqs=6)
    many = [make_request(f"{index}" * 60, SamplingParams(max_tokens=60), request_id=f"{index}") for index in range(6)]
    outputs = finish(engine, *many)
    assert all(len(output.token_ids) == 60 for output in outputs.values())
