"""int8 models: they run like any other, differ by roundings only, say so by their fingerprint, and refuse clearly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams, loading
from tokenmill_worker.engine.api import ModelError
from tokenmill_worker.engine.attention.cpu import library, toolchain
from tokenmill_worker.engine.attention.cpu.linears import W8A8Linear
from tokenmill_worker.engine.batch import Loaded
from tokenmill_worker.engine.quantization import Quantizer, refuse_if_impossible
from tokenmill_worker.engine.quantization.smoothing import balance

KINDS = ("w8a8", "w8a16")
PROMPTS = [[5, 17, 3, 88, 41], [9, 9, 70], list(range(2, 60))]

Load = Callable[..., Loaded]


@pytest.fixture
def load(tiny_checkpoint: Callable[[str], Path]) -> Load:
    def load(architecture: str = "llama", **config: Any) -> Loaded:
        return loading.load(EngineConfig(model=str(tiny_checkpoint(architecture)), kv_cache_tokens=2048, **config))

    return load


def generate(loaded: Loaded, prompts: list[list[int]], **config: Any) -> list[list[int]]:
    engine = Engine(EngineConfig(**config), runner=loaded.runner, tokenizer=loaded.tokenizer)
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=0)
    return [output.token_ids for output in engine.generate(prompts, params)]


def logprobs(loaded: Loaded) -> torch.Tensor:
    """Of the first token, of the likeliest five."""
    engine = Engine(EngineConfig(), runner=loaded.runner, tokenizer=loaded.tokenizer)
    outputs = engine.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=1, logprobs=0, ignore_eos=True))
    return torch.tensor([output.logprobs[0].chosen for output in outputs])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("architecture", "dtype"), [("llama", "bfloat16"), ("llama", "float32"), ("qwen2", "bfloat16")]
)
def test_a_quantized_model_is_near_the_original(load: Load, architecture: str, dtype: str, kind: str) -> None:
    original, quantized = load(architecture, dtype=dtype), load(architecture, dtype=dtype, quantization=kind)
    difference = (logprobs(quantized) - logprobs(original)).abs().max()
    assert float(difference) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_in_a_batch_has_the_tokens_it_has_alone(load: Load, kind: str) -> None:
    loaded = load(dtype="float32", quantization=kind)
    together = generate(loaded, PROMPTS)
    assert together == [generate(loaded, [prompt])[0] for prompt in PROMPTS]
    assert together == generate(loaded, PROMPTS, max_num_batched_tokens=7)


def test_fingerprints_tell_quantizations_apart(load: Load) -> None:
    fingerprints = [load(quantization=kind).runner.fingerprint for kind in (None, *KINDS)]
    assert len(set(fingerprints)) == 3
    assert load(quantization="w8a8").runner.fingerprint == fingerprints[1]


def refuse(device: str, dtype: torch.dtype = torch.bfloat16, **config: Any) -> None:
    asked = EngineConfig(quantization="w8a8", **config)
    refuse_if_impossible(asked, device=device, dtype=dtype, cache_dir=Path.home() / ".cache" / "tokenmill")


def test_what_does_not_exist_is_refused_with_advice() -> None:
    with pytest.raises(ModelError, match="device cpu only, not for cuda"):
        refuse("cuda")
    with pytest.raises(ModelError, match="takes dtype bfloat16 or float32, not float16"):
        refuse("cpu", torch.float16)
    with pytest.raises(ModelError, match="leave tier at auto"):
        refuse("cpu", tier=0)


def test_without_a_compiler_it_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(cache_dir: Path) -> str:
        raise toolchain.LibraryError("no C++ compiler is installed", "install g++")

    monkeypatch.setattr(library, "load", missing)
    with pytest.raises(ModelError, match="install g"):
        refuse("cpu")


def test_a_broken_kernel_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = Quantizer("w8a8")
    linear = quantizer.linear(torch.randn(64, 32), None)
    monkeypatch.setattr(W8A8Linear, "__call__", lambda self, x: torch.randn(len(x), 64))
    with pytest.raises(ModelError, match="wrong on this machine"):
        quantizer.commit()
    del linear


def test_a_model_without_known_linears_is_refused() -> None:
    with pytest.raises(ModelError, match="no linear layer"):
        Quantizer("w8a8").commit()


def test_what_no_layer_kept_is_not_quantized() -> None:
    quantizer = Quantizer("w8a16")
    kept = quantizer.linear(torch.randn(64, 32), None)
    quantizer.linear(torch.randn(64, 32), None)
    assert quantizer.commit() == 1
    assert kept(torch.randn(2, 32)).shape == (2, 64)


def test_balance_gives_an_outlier_fewer_levels_and_keeps_the_product() -> None:
    largest = torch.ones(40)
    largest[3] = 1000.0
    factors = balance(torch.randn(50, 40, generator=torch.Generator().manual_seed(0)), largest)
    assert float(factors[3]) < float(factors[:3].min()) / 4
    assert torch.equal(torch.exp2(factors.log2().round()), factors)


@pytest.mark.parametrize("largest", [torch.zeros(8), torch.tensor([0.0] * 7 + [1.0])])
def test_balance_bears_inputs_that_were_never_active(largest: torch.Tensor) -> None:
    for weight in (torch.zeros(4, 8), torch.randn(4, 8)):
        assert torch.isfinite(balance(weight, largest)).all()
