"""Decode steps as a program over static buffers, replayed: the tokens of the plain loop, whatever joins and leaves."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill_worker.engine import (
    Engine,
    EngineConfig,
    SamplingParams,
    decode_program,
    device_draws,
    device_uniform,
    uniform,
)
from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.attention import Backend
from tokenmill_worker.engine.attention.device_rows import decode_step_of
from tokenmill_worker.engine.attention.triton.backend import TritonBackend
from tokenmill_worker.engine.attention.triton.device import INTERPRETER
from tokenmill_worker.engine.decode_program import DecodeProgram
from tokenmill_worker.engine.decoder import Decoder
from tokenmill_worker.engine.graphs import Capture, Graph, Graphs, bucket_for
from tokenmill_worker.engine.model_runner import ModelRunner
from tokenmill_worker.engine.tokenizer import NoTokenizer
from tokenmill_worker.engine.transfer import to_device
from transformers import PreTrainedModel

from tests.engine.models.gathered import GatheredBackend
from tests.engine.models.test_overlap import KINDS, assert_same, engine_of, model, prompt
from tests.engine.models.tiny import PACKABLE, VOCAB, make_model

__all__ = ["model"]
MAX_MODEL_LEN = 256


@dataclass
class FakeGraph:
    """Replays what was captured, and counts: the operations of a CUDA graph, on the same tensors."""

    step: Callable[[], None]
    num_replays: int = 0

    def replay(self) -> None:
        self.num_replays += 1
        with torch.inference_mode():
            self.step()


class FakeCapture:
    def __init__(self) -> None:
        self.graphs: list[FakeGraph] = []

    def __call__(self, run: Callable[[], None]) -> Graph:
        self.graphs.append(FakeGraph(run))
        return self.graphs[-1]


def decoding_engine(
    model: PreTrainedModel,
    capture: Capture | None,
    *,
    num_pages: int = 24,
    budget: int = 64,
    max_num_seqs: int = 6,
    backend: Backend | None = None,
) -> Engine:
    adapter = Adapter(model, backend or GatheredBackend())
    make_step = decode_step_of(adapter.backend)
    assert make_step is not None
    program = DecodeProgram(adapter, make_step, max_rows=bucket_for(max_num_seqs), max_model_len=MAX_MODEL_LEN)
    runner = ModelRunner(
        adapter,
        num_pages=num_pages,
        max_model_len=MAX_MODEL_LEN,
        fingerprint="test",
        decoder=Decoder(program, capture),
    )
    config = EngineConfig(max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, overlap=True)
    return Engine(config, runner=runner, tokenizer=NoTokenizer(vocab_size=VOCAB, eos_token_ids=[2]))


@settings(max_examples=12)
@given(
    work=st.lists(
        st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 90), st.integers(1, 40)), min_size=1, max_size=7
    ),
    num_pages=st.sampled_from([10, 24]),
    budget=st.sampled_from([6, 64, 200]),
    num_candidates=st.sampled_from([2, 16, VOCAB]),
    is_captured=st.booleans(),
)
def test_any_work_ends_as_in_the_plain_loop(
    model: PreTrainedModel,
    work: list[tuple[str, int, int]],
    num_pages: int,
    budget: int,
    num_candidates: int,
    is_captured: bool,
) -> None:
    params = [replace(KINDS[kind], max_tokens=max(tokens, KINDS[kind].min_tokens)) for kind, _, tokens in work]
    prompts = [prompt(length) for _, length, _ in work]
    capture = FakeCapture() if is_captured else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_draws.draw, "__kwdefaults__", {"num_candidates": num_candidates})
        ours = decoding_engine(model, capture, num_pages=num_pages, budget=budget).generate(prompts, params)
    plain = engine_of(model, overlap=False, num_pages=num_pages, budget=budget).generate(prompts, params)
    assert_same(ours, plain)


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)


def test_a_bucket_is_captured_once_and_replayed_from_then_on(model: PreTrainedModel) -> None:
    capture = FakeCapture()
    engine = decoding_engine(model, capture)
    engine.generate([prompt(5), prompt(9), prompt(7)], greedy(30))
    engine.generate([prompt(5), prompt(9), prompt(7)], greedy(30))
    assert [graph.num_replays for graph in capture.graphs] == [58]


def test_draws_and_greedy_rows_have_graphs_of_their_own(model: PreTrainedModel) -> None:
    capture = FakeCapture()
    engine = decoding_engine(model, capture)
    engine.generate([prompt(5), prompt(9)], greedy(9))
    engine.generate([prompt(5), prompt(9)], [greedy(9), replace(KINDS["sampled"], max_tokens=9, ignore_eos=True)])
    assert [graph.num_replays for graph in capture.graphs] == [8, 8]


def test_the_host_writes_only_rows_that_join_leave_or_begin_a_page(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    real = to_device

    def counting(array: np.ndarray, device: torch.device) -> torch.Tensor:
        if array.ndim == 2 and array.shape[1] == decode_program.NUM_COLUMNS:
            written.append(len(array))
        return real(array, device)

    monkeypatch.setattr(decode_program, "to_device", counting)
    engine = decoding_engine(model, FakeCapture())
    engine.generate([prompt(20), prompt(25)], greedy(30))
    assert written == [2, 1, 1]  # both join; one begins a page after 7 tokens, one after 12


def test_a_capture_that_fails_is_told_once_and_changes_nothing(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(run: Callable[[], None]) -> Graph:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    prompts = [prompt(5), prompt(9)]
    ours = decoding_engine(model, failing).generate(prompts, greedy(9))
    assert_same(ours, engine_of(model, overlap=False).generate(prompts, greedy(9)))
    assert [record.message for record in caplog.records] == [
        "Decode steps run without CUDA graphs, which is slower: operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2", "olmo2", "phi3", "opt"])
def test_other_architectures(architecture: str) -> None:
    own = make_model(PACKABLE[architecture]())
    prompts = [prompt(length) for length in (3, 31, 40)]
    ours = decoding_engine(own, FakeCapture()).generate(prompts, greedy(40))
    assert_same(ours, engine_of(own, overlap=False).generate(prompts, greedy(40)))


def test_by_triton_the_tokens_are_those_of_the_plain_loop(model: PreTrainedModel) -> None:
    """Three rows in a bucket of four, one of which begins a page."""
    capture, prompts = FakeCapture(), [prompt(31), prompt(5), prompt(3)]
    ours = decoding_engine(model, capture, backend=TritonBackend(has_flash=False)).generate(prompts, greedy(3))
    assert_same(ours, engine_of(model, overlap=False).generate(prompts, greedy(3)))
    assert [graph.num_replays for graph in capture.graphs] == [2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "num_processors"), [("llama", 12), ("gemma2", 1), ("gpt_oss", 12), ("phi3", 1)]
)
def test_by_triton_with_windows_softcap_and_sinks(architecture: str, num_processors: int) -> None:
    """Few pages, so that rows wait or begin again; drawn and greedy; keys in one part and in several."""
    own = make_model(PACKABLE[architecture]())
    backend = TritonBackend(has_flash=False, device=INTERPRETER._replace(num_processors=num_processors))
    prompts = [prompt(length) for length in (3, 31, 40)]
    kinds = ("greedy", "filtered", "sampled")
    params = [replace(KINDS[kind], max_tokens=6, ignore_eos=True) for kind in kinds]
    capture = FakeCapture()
    ours = decoding_engine(own, capture, backend=backend, num_pages=4).generate(prompts, params)
    assert_same(ours, engine_of(own, overlap=False, num_pages=4).generate(prompts, params))
    assert sum(graph.num_replays for graph in capture.graphs) > 5


def test_a_step_has_run_before_it_is_captured() -> None:
    """A compiler at work would break the capture."""
    done: list[str] = []

    def capture(step: Callable[[], None]) -> Graph:
        done.append("captured")
        return FakeGraph(step)

    graphs = Graphs(capture)
    for _ in range(2):
        graphs.run((4, False), lambda: done.append("ran"), rehearse=lambda step: step())
    assert done == ["ran", "ran", "captured", "ran", "ran"]


def test_a_step_that_fails_midway_leaves_nothing_that_is_believed(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is run the plain way, and the next one by the program again."""
    num_runs, real = itertools.count(1), DecodeProgram.run

    def failing(program: DecodeProgram, bucket: int, *, is_drawing: bool) -> None:
        if next(num_runs) == 3:
            raise MemoryError
        real(program, bucket, is_drawing=is_drawing)

    monkeypatch.setattr(DecodeProgram, "run", failing)
    prompts = [prompt(5), prompt(9)]
    ours = decoding_engine(model, None).generate(prompts, greedy(12))
    assert_same(ours, engine_of(model, overlap=False).generate(prompts, greedy(12)))


def test_buckets() -> None:
    rows = [1, 2, 3, 5, 8, 9, 16, 17, 250, 256, 257, 300]
    assert [bucket_for(num) for num in rows] == [1, 2, 4, 8, 8, 16, 16, 24, 256, 256, 288, 320]


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1)), min_size=1, max_size=20))
def test_uniforms_on_the_device_are_those_of_the_host(pairs: Sequence[tuple[int, int]]) -> None:
    seeds = np.array([seed for seed, _ in pairs], dtype=np.uint64)
    positions = np.array([position for _, position in pairs], dtype=np.int32)
    ours = device_uniform.uniforms(torch.from_numpy(seeds.view(np.int64)), torch.from_numpy(positions).long())
    assert ours.tolist() == uniform.uniforms(seeds, positions).tolist()
