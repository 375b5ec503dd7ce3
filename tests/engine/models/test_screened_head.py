"""The screened head chooses what the whole head's arg-max says, to the last bit, or says that it does not know."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.answers import UNKNOWN, Answers
from tokenmill_worker.engine.api import SamplingParams
from tokenmill_worker.engine.attention import backend_named
from tokenmill_worker.engine.attention.cpu import library
from tokenmill_worker.engine.attention.cpu.linears import Bfloat16Linear
from tokenmill_worker.engine.attention.cpu.screened_head import ScreenedHead, can_screen
from tokenmill_worker.engine.batch import SampleRow
from tokenmill_worker.engine.guard import Truth, check
from tokenmill_worker.engine.sampler import NOT_FINITE, sample, sample_answers
from tokenmill_worker.engine.surgery import operate, screening
from tokenmill_worker.engine.surgery.program import Program
from tokenmill_worker.engine.surgery.screening import MOST_IN_VAIN, PERIOD, Screening, screening_of
from torch import Tensor, nn

from tests.engine.models.tiny import PACKABLE, make_model


@pytest.fixture(autouse=True, scope="session")
def _library() -> None:
    library.load(Path.home() / ".cache" / "tokenmill")


needs_bfloat16 = pytest.mark.skipif(
    "avx512_bf16" not in Path("/proc/cpuinfo").read_text(), reason="the processor does not multiply bfloat16"
)


def whole(weight: Tensor, x: Tensor, *, portable: bool = False) -> Tensor:
    head = Bfloat16Linear(weight, None)
    logits = torch.ops.tokenmill_cpu.linear_bf16(x, head._packed, len(weight), None, portable)
    token_ids: Tensor = torch.ops.tokenmill_cpu.argmax(logits)
    return token_ids


def assert_same(weight: Tensor, x: Tensor, *, least_decided: float = 0.0) -> None:
    for portable in (False, True):
        screened = ScreenedHead(weight)(x, portable=portable)
        decided = screened >= 0
        assert torch.equal(screened[decided], whole(weight, x, portable=portable)[decided])
        assert decided.float().mean() >= least_decided


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CHANGES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "nothing": lambda w, x: (w, x),
    "equal columns": lambda w, x: (w[torch.arange(len(w)) // 3], x),
    "all columns equal": lambda w, x: (w[:1].expand_as(w), x),
    "near ties": lambda w, x: (w[:1] + w * 2**-9, x),
    "ties of bfloat16 only": lambda w, x: (w[:1].sign() + w * 2**-8, x.abs() + 1),
    "negative logits": lambda w, x: (-w.abs(), x.abs()),
    "huge inputs": lambda w, x: (w, x * torch.where(torch.arange(x.shape[1]) % 37 == 0, 1e4, 1.0)),
    "huge weights": lambda w, x: (w * torch.where(torch.arange(w.shape[1]) % 29 == 0, 1e3, 1.0), x),
    "columns of many sizes": lambda w, x: (w * torch.exp2(torch.arange(len(w)) % 40 - 30.0)[:, None], x),
    "zeros": lambda w, x: (w * (torch.arange(len(w)) % 2)[:, None], x * (torch.arange(len(x)) % 3 > 0)[:, None]),
    "tiny": lambda w, x: (w * 1e-20, x * 1e-6),
    "below normal": lambda w, x: (w * 1e-39, x * 1e-2),
    "beyond what is screened": lambda w, x: (w * 1e-30, x * 1e-20),
    "big": lambda w, x: (w * 1e8, x * 1e9),
    "one sided": lambda w, x: (w, x.abs() + 5),
    "a row alone in its direction": lambda w, x: (w, w[torch.arange(len(x)) % len(w)] * 3),
}


@pytest.mark.parametrize("change", CHANGES)
@settings(max_examples=12, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 7, 14, 15, 33]),
    columns=st.integers(1, 700),
    inputs=st.sampled_from([2, 6, 32, 64, 150, 576]),
    seed=st.integers(0, 10_000),
)
def test_what_is_decided_is_the_whole_heads_choice(
    change: str, rows: int, columns: int, inputs: int, seed: int
) -> None:
    w, x = CHANGES[change](normal(columns, inputs, seed=seed), normal(rows, inputs, seed=seed + 1))
    assert_same(w.bfloat16().contiguous(), x.bfloat16())


def test_rows_with_a_clear_favourite_are_decided() -> None:
    w = normal(5000, 576, seed=0)
    assert_same(w.bfloat16(), (w[::80] + normal(63, 576, seed=1)).bfloat16(), least_decided=1.0)


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_a_row_that_is_not_finite_is_left_to_the_whole_head_and_its_neighbours_are_not(odd: float) -> None:
    w = normal(1000, 64, seed=0).bfloat16()
    x = w[:20] * 4
    x[3, 5] = odd
    screened = ScreenedHead(w)(x)
    assert screened[3] == -1
    assert torch.equal(screened[screened >= 0], torch.cat([torch.arange(3), torch.arange(4, 20)]))


def test_a_row_with_more_candidates_than_it_is_worth_is_left_to_the_whole_head() -> None:
    w = normal(1, 64, seed=0).expand(3000, 64).bfloat16().contiguous()
    assert ScreenedHead(w)(normal(2, 64, seed=1).bfloat16()).tolist() == [-1, -1]


def test_weights_that_cannot_be_bounded_are_not_screened() -> None:
    w = normal(100, 64, seed=0).bfloat16()
    assert can_screen(w) == torch.ops.tokenmill_cpu.has_fast_int8()
    for odd in (torch.nan, torch.inf, 1e30):
        other = w.clone()
        other[7, 3] = odd
        assert not can_screen(other)
    assert not can_screen(w.float())
    assert not can_screen(w[:, :63].contiguous())


# In a model


def operated(architecture: str) -> tuple[Adapter, Truth]:
    model = make_model(PACKABLE[architecture]()).bfloat16()
    adapter = Adapter(model, backend_named("cpu"))
    truth = check(adapter, window=None, longest=256)
    report = operate(adapter, truth.first_step(adapter))
    assert ("screened" in str(report)) == report.is_screened
    return adapter, truth


def program_of(adapter: Adapter) -> Program:
    assert isinstance(adapter.program, Program)
    return adapter.program


@needs_bfloat16
def test_a_model_whose_head_gives_the_logits_is_screened_and_one_that_changes_them_is_not() -> None:
    assert program_of(operated("llama")[0]).screening is not None
    assert program_of(operated("gemma2")[0]).screening is None


@needs_bfloat16
@pytest.mark.parametrize("num_greedy", [0, 3, 40, 50])
def test_rows_get_tokens_or_logits_as_they_asked(num_greedy: int) -> None:
    adapter, truth = operated("llama")
    batch = truth.first_step(adapter)
    keep, is_greedy = np.arange(50), np.arange(50) >= 50 - num_greedy
    logits = adapter.logits(batch, keep)
    answers = adapter.answers(batch, keep, is_greedy)
    known = answers.token_ids != UNKNOWN
    assert not known[~is_greedy].any()
    assert known.any() == (num_greedy >= 40)
    np.testing.assert_array_equal(answers.rows, np.flatnonzero(~known))
    assert answers.logits is None or torch.equal(answers.logits, logits[torch.from_numpy(answers.rows)])
    np.testing.assert_array_equal(answers.token_ids[known], logits.float().numpy().argmax(-1)[known])


@needs_bfloat16
def test_a_screen_that_chooses_otherwise_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = nn.Linear(64, 300, bias=False).bfloat16()
    made, hidden = Bfloat16Linear(module.weight.data, None), normal(9, 64, seed=0).bfloat16()
    assert screening_of(module, made, hidden) is not None
    monkeypatch.setattr(screening, "ScreenedHead", lambda weight: ScreenedHead(-weight))
    assert screening_of(module, made, hidden) is None
    assert caplog.text.count("left out") == 1


def test_a_screen_that_decides_too_little_gives_up() -> None:
    flat = normal(1, 64, seed=0).expand(3000, 64).bfloat16().contiguous()
    weight = torch.cat([normal(3000, 64, seed=2).bfloat16(), flat])
    own = Screening(ScreenedHead(weight))
    clear, unclear = weight[:2] * 4, flat[:2]
    for _ in range(PERIOD):
        assert (own(clear, np.ones(2, dtype=np.bool_)) == [0, 1]).all()
    for _ in range(MOST_IN_VAIN + 1):
        assert (own(unclear, np.ones(2, dtype=np.bool_)) == UNKNOWN).all()
    for _ in range(PERIOD - MOST_IN_VAIN - 1):
        own(clear, np.ones(2, dtype=np.bool_))
    assert (own(clear, np.ones(2, dtype=np.bool_)) == UNKNOWN).all()


def test_known_tokens_and_draws_from_logits_come_together() -> None:
    logits = normal(6, 50, seed=0)
    logits[4, 7] = torch.nan
    params = [SamplingParams(temperature=0.0), SamplingParams(temperature=1.0), SamplingParams(logprobs=2)]
    empty = np.zeros(0, dtype=np.int32)
    rows = [SampleRow(i, params[i % 3], 5, 3, empty, empty) for i in range(6)]
    whole_draws = sample(logits, rows)
    others = np.array([1, 2, 4, 5])
    known = np.array([int(logits[0].argmax()), UNKNOWN, UNKNOWN, int(logits[3].argmax()), UNKNOWN, UNKNOWN])
    draws = sample_answers(Answers(known, others, logits[torch.from_numpy(others)]), rows)
    assert list(draws) == list(whole_draws)
    assert draws[4].error == NOT_FINITE
    assert draws[5].logprobs is not None
    decided = sample_answers(Answers(known[[0, 3]], np.zeros(0, dtype=np.intp), None), [rows[0], rows[3]])
    assert list(decided) == [whole_draws[0], whole_draws[3]]
