"""From a model's name to a runner that may serve it: find, load, put into packed mode, check, size."""

import hashlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from tokenmill_worker.engine import checkpoint, compilation, guard, length_limit, sizing, surgery
from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.api import EngineConfig, ModelError
from tokenmill_worker.engine.attention import backend_named
from tokenmill_worker.engine.batch import Loaded, Tokenizer
from tokenmill_worker.engine.decoder import decoder_for
from tokenmill_worker.engine.memory import available_bytes
from tokenmill_worker.engine.model_runner import ModelRunner
from tokenmill_worker.engine.parallel import sharding
from tokenmill_worker.engine.parallel.ranks import Ranks
from tokenmill_worker.engine.parallel.runner import LeadingRunner, follow
from tokenmill_worker.engine.quantization import Quantizer, refuse_if_impossible
from tokenmill_worker.engine.remembered import Memory
from tokenmill_worker.engine.threads import usable_cores
from tokenmill_worker.engine.tokenizer import HFTokenizer, NoTokenizer

_logger = logging.getLogger(__name__)

SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

MOST_UNSHARDED = 2 * 2**30  # bytes of float32 that each of the processes which share a model holds for a moment

# What a model's own Python may raise when it is run in a way that its author did not think of.
MODEL_FAULTS = (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError)


class Packed(NamedTuple):
    adapter: Adapter
    truth: guard.Truth


class Ready(NamedTuple):
    """A model that may serve. Its fingerprint is that of the checkpoint, whatever became of the weights' layout."""

    adapter: Adapter
    fingerprint: str
    tier: int = 0


def load(config: EngineConfig) -> Loaded:
    """Raises ModelError, with what to do about it, for a model that is not there or cannot run packed."""
    torch.set_num_threads(config.num_threads or _fair_num_threads(config))
    ranks = _join_ranks(config)
    with quiet_transformers():
        folder = checkpoint.locate(config.model, cache_dir=cache_dir(config))
        hf_tokenizer = _load_tokenizer(folder, trust_remote_code=config.trust_remote_code)
        ready = _operated(folder, config, hf_tokenizer, ranks)
    runner = _runner(ready, config, ranks)
    generation = ready.adapter.model.generation_config
    tokenizer = _tokenizer(hf_tokenizer, _eos_token_ids(generation, hf_tokenizer), runner.vocab_size)
    loaded = Loaded(runner, tokenizer, _default_params(generation), _computing(ready, config))
    loaded = loaded._replace(set_num_threads=torch.set_num_threads)
    return loaded._replace(close=runner.close) if isinstance(runner, LeadingRunner) else loaded


def _runner(ready: Ready, config: EngineConfig, ranks: Ranks | None) -> ModelRunner | LeadingRunner:
    """What the engine runs its batches on. On a rank that follows this does not return: it serves, then exits."""
    adapter = ready.adapter
    max_model_len = length_limit.max_model_len(_limit(adapter), requested=config.max_model_len)
    if config.compile_layers:
        compilation.compile_layers(adapter)
    num_pages = sizing.num_pages(adapter, config, max_model_len=max_model_len)
    sizes = {"num_pages": num_pages, "max_model_len": max_model_len}
    if ranks is None:
        decoder = decoder_for(adapter, config, max_model_len=max_model_len)
        return ModelRunner(adapter, **sizes, fingerprint=ready.fingerprint, decoder=decoder)
    if ranks.is_leader:
        return LeadingRunner(adapter, ranks, **sizes, fingerprint=ready.fingerprint)
    follow(adapter, ranks, num_pages=num_pages)
    sys.exit(0)


def _join_ranks(config: EngineConfig) -> Ranks | None:
    """The processes that share the model, when several do."""
    if config.tensor_parallel_size == 1:
        return None
    if config.tier == 1 or config.quantization is not None:
        asked = "tier 1" if config.tier == 1 else f"quantization {config.quantization}"
        raise ModelError(f"{asked} is for a model in one process: leave it out, or set tensor_parallel_size to 1")
    return Ranks.join(config.tensor_parallel_size, device=_device(config))


def _fair_num_threads(config: EngineConfig) -> int:
    """One for each usable core; processes that share a model share them."""
    return max(1, min(torch.get_num_threads(), usable_cores() // config.tensor_parallel_size))


def fingerprint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, *, quantization: str | None = None
) -> str:
    """Equal for equal weights, dtype, quantization, tokenizer and template, wherever their files lie."""
    digest = hashlib.sha256(type(model).__name__.encode())
    if quantization is not None:
        digest.update(f"quantization {quantization}".encode())
    digest.update(model.config.to_json_string(use_diff=True).encode())
    for name, parameter in model.named_parameters():
        weights = sharding.whole(parameter.data)
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {_checksum(weights)}\n".encode())
    if tokenizer is not None:
        digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
        digest.update(str(tokenizer.chat_template).encode())
    return digest.hexdigest()[:32]


def _checksum(weights: torch.Tensor) -> tuple[int, int]:
    """Over the bits, as integers: exact, whatever the order of summation. The second sum notices swapped values."""
    octets = weights.contiguous().flatten().view(torch.uint8)
    if octets.storage_offset() % 8:
        octets = octets.clone()
    words, rest = octets[: octets.numel() // 8 * 8].view(torch.int64), octets[octets.numel() // 8 * 8 :]
    total = int(words.sum()) + int(rest.sum(dtype=torch.int64))  # the first wraps around; eight bytes at once are fast
    return total, int(words[:: max(1, words.numel() // 1009)][::2].sum())


def cache_dir(config: EngineConfig) -> Path:
    """Where dequantized weights and the CPU library are kept."""
    return config.cache_folder


def _load_model(folder: Path, config: EngineConfig) -> PreTrainedModel:
    try:
        hf_config = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=hf_config,
            dtype=_dtype(config, hf_config),
            attn_implementation="eager",  # exists for every model; packed mode is set afterwards, where it can be
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            **_placement(config, hf_config),
        )
    except (OSError, ImportError, *MODEL_FAULTS) as error:
        raise ModelError(f"transformers cannot load {config.model}: {_first_line(error)}") from error
    model, info = cast("tuple[PreTrainedModel, dict[str, set[str]]]", loaded)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"the checkpoint {config.model} lacks {len(missing)} weights, among them {missing[0]}")
    vars(model.config).pop("distributed_config", None)  # of this process, not of the checkpoint
    return model


def _placement(config: EngineConfig, hf_config: PretrainedConfig) -> dict[str, Any]:
    """Where from_pretrained puts the weights."""
    if config.tensor_parallel_size > 1:
        return sharding.placement(hf_config, config.tensor_parallel_size)
    return {"device_map": {"": "cuda"}} if _device(config) == "cuda" else {}


def _device(config: EngineConfig) -> str:
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda was asked for, but torch sees none: check the driver, and that torch has CUDA")
    return config.device


def _dtype(config: EngineConfig, hf_config: PretrainedConfig) -> torch.dtype:
    if config.dtype != "auto":
        named: torch.dtype = getattr(torch, config.dtype)
        return named
    own = getattr(hf_config.get_text_config(decoder=True), "dtype", None) or getattr(hf_config, "dtype", None)
    return own if isinstance(own, torch.dtype) else torch.float32


def _load_tokenizer(folder: Path, *, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """None where the checkpoint has no tokenizer; one that is there and broken is an error."""
    if not any(folder.glob("*token*")) and not any(folder.glob("vocab.*")) and not any(folder.glob("*.model")):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ImportError, *MODEL_FAULTS) as error:
        raise ModelError(f"transformers cannot load the tokenizer in {folder}: {_first_line(error)}") from error
    return tokenizer


def _tokenizer(hf_tokenizer: PreTrainedTokenizerBase | None, eos: frozenset[int], vocab_size: int) -> Tokenizer:
    if hf_tokenizer is None:
        return NoTokenizer(vocab_size=vocab_size, eos_token_ids=eos)
    return HFTokenizer(hf_tokenizer, eos_token_ids=eos)


def _eos_token_ids(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """What generate() stops at; the tokenizer's end of text where the checkpoint names none."""
    eos = getattr(generation, "eos_token_id", None)
    if eos is None:
        eos = getattr(tokenizer, "eos_token_id", None)
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else eos)


def _default_params(generation: GenerationConfig | None) -> dict[str, float | int]:
    """What the checkpoint's generation_config sets, and nothing else: a library's defaults are not the model's."""
    stated = {name: getattr(generation, name, None) for name in SAMPLING_DEFAULTS}
    return {name: value for name, value in stated.items() if value is not None}


def _computing(ready: Ready, config: EngineConfig) -> dict[str, str]:
    """What a worker publishes of how it computes; an empty note means that nothing stands in for something faster."""
    return {
        "attention_backend": ready.adapter.backend.name,
        "attention_note": ready.adapter.backend.note,
        "greedy_head": "screened in int8" if _is_screened(ready.adapter) else "",
        "tier": str(ready.tier),
        "quantization": config.quantization or "none",
        "tensor_parallel_size": str(config.tensor_parallel_size),
    }


def _is_screened(adapter: Adapter) -> bool:
    return isinstance(adapter.program, surgery.Program) and adapter.program.screening is not None


def _operated(
    folder: Path, config: EngineConfig, tokenizer: PreTrainedTokenizerBase | None, ranks: Ranks | None
) -> Ready:
    """The packed model in its tier; as transformers made it where the operation fails."""
    model = _load_model(folder, config)
    refuse_if_impossible(config, device=model.device.type, dtype=model.dtype, cache_dir=cache_dir(config))
    identity = fingerprint(model, tokenizer, quantization=config.quantization)
    packed = _packed(model, config, ranks, identity)
    if ranks is not None:
        is_compared = _agrees_unsharded(packed, folder, config)
        _describe_sharding(model, ranks, is_compared=is_compared)
    ready = Ready(packed.adapter, identity)
    if _tier(config, ready.adapter) == 0:
        return ready
    try:
        report = _operate(packed, config)
    except (ModelError, *MODEL_FAULTS) as error:
        if config.quantization is not None:
            raise ModelError(f"quantization does not work for {config.model}: {_first_line(error)}") from error
        _logger.warning("Tier 1 does not work for this model, so it runs as it is: %s", _first_line(error))
        return ready._replace(adapter=_packed(_load_model(folder, config), config, ranks, identity).adapter)
    _logger.info("Tier 1: %s", report)
    return ready._replace(tier=1)


def _operate(packed: Packed, config: EngineConfig) -> str:
    """The adapter in tier 1, past its checks, and then with int8 weights if that was asked for; says what was done."""
    adapter, truth = packed
    materials = surgery.standard_materials(adapter)
    quantizer = Quantizer(config.quantization) if config.quantization is not None else None
    if quantizer is not None:
        materials = materials._replace(linear=quantizer.linear)
    report = surgery.operate(adapter, truth.first_step(adapter), materials)
    truth.check(adapter)
    if quantizer is None:
        return str(report)
    return f"{report}; {quantizer.commit()} products in {config.quantization}"


def _tier(config: EngineConfig, adapter: Adapter) -> int:
    if config.tensor_parallel_size > 1:
        return 0  # tier 1 packs whole weights
    if config.tier == "auto":
        return 1 if adapter.device.type == "cpu" else 0
    return config.tier


def _packed(model: PreTrainedModel, config: EngineConfig, ranks: Ranks | None, identity: str) -> Packed:
    """The model in packed mode, past the load guard; mixtures of experts in the fastest form that works here."""
    try:
        return _guarded(model, config, ranks, identity)
    except MODEL_FAULTS as error:
        if getattr(model.config, "_experts_implementation", None) in (None, "eager"):
            raise ModelError(f"{config.model} fails in packed mode: {_first_line(error)}") from error
    model.set_experts_implementation("eager")  # grouped_mm has no kernel for every device, dtype and width
    try:
        return _guarded(model, config, ranks, identity)
    except MODEL_FAULTS as error:
        raise ModelError(f"{config.model} fails in packed mode: {_first_line(error)}") from error


def _guarded(model: PreTrainedModel, config: EngineConfig, ranks: Ranks | None, identity: str) -> Packed:
    backend = backend_named(config.attention_backend, device=model.device.type, cache_dir=cache_dir(config))
    adapter = Adapter(model, backend) if ranks is None else Adapter(model, backend, least_of_ranks=ranks.least)
    longest = length_limit.max_model_len(_limit(adapter), requested=None)
    window = length_limit.narrowest_window(adapter.config)
    memory = _memory(adapter, config, identity) if ranks is None else None
    return Packed(adapter, guard.check(adapter, window=window, longest=longest, memory=memory))


def _memory(adapter: Adapter, config: EngineConfig, identity: str) -> Memory:
    """`identity`: the model's fingerprint."""
    experts = str(getattr(adapter.model.config, "_experts_implementation", None))
    device = torch.cuda.get_device_name() if adapter.device.type == "cuda" else adapter.device.type
    return Memory(cache_dir(config) / "checked", [identity, experts, device, adapter.backend.name])


def _agrees_unsharded(packed: Packed, folder: Path, config: EngineConfig) -> bool:
    """False: it is too large to be held unsharded, so nobody knows. Raises ModelError where it is another model."""
    adapter, truth = packed
    most = min(MOST_UNSHARDED, available_bytes(adapter.device) // (2 * config.tensor_parallel_size))
    fits = 4 * sharding.num_weights(adapter.model) <= most
    if not truth.is_exact or not adapter.least_of_ranks(fits):
        return False
    whole = _load_model(folder, replace(config, tensor_parallel_size=1))
    nn.Module.float(whole)
    if getattr(whole.config, "_experts_implementation", None) not in (None, "eager"):
        whole.set_experts_implementation("eager")
    guard.check_sharded(truth, whole)
    return True


def _describe_sharding(model: PreTrainedModel, ranks: Ranks, *, is_compared: bool) -> None:
    """One line in the log of rank 0."""
    if ranks.is_leader:
        _logger.info(
            "Tier 0: %d processes share the model, %.0f%% of its weights are shared out; %s",
            ranks.size,
            100 * sharding.share(model),
            "its logits are those of the unsharded model" if is_compared else "too large to be compared unsharded",
        )


def _limit(adapter: Adapter) -> length_limit.LengthLimit | None:
    return length_limit.exact_limit(adapter.config, passes_window=adapter.passes_window)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and load reports on stderr: what matters in them is raised as ModelError."""
    verbosity, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types here
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types here
