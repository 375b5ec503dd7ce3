"""Models of known shapes with random weights, made on the device itself. Knows no engine."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen3Config


class Shape(NamedTuple):
    name: str
    config: PretrainedConfig


class Plan(NamedTuple):
    """What is measured: decode at (batch, context), one job, latency at so many in flight, steps of small models."""

    shapes: Mapping[str, Shape]
    decode: Mapping[str, list[tuple[int, int]]]
    job: tuple[int, int, int]  # requests, prompt tokens, output tokens
    in_flight: list[int]
    num_steps: int  # that are timed in decode
    step_rows: int


def _llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        max_position_embeddings=32768,
        **more,
    )


def _qwen3(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int) -> Qwen3Config:
    return Qwen3Config(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=128 if hidden > 64 else 16,
        vocab_size=vocab,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )


def full() -> Plan:
    return Plan(
        shapes={
            "8b": Shape("Llama-3.1-8B", _llama(4096, 14336, 32, 32, 8, 128256)),
            "qwen": Shape("Qwen3-0.6B", _qwen3(1024, 3072, 28, 16, 8, 151936)),
            "smollm2": Shape("SmolLM2-135M", _llama(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True)),
        },
        decode={
            "8b": [(1, 512), (32, 1024), (256, 1024)],
            "qwen": [(1, 512), (64, 512)],
            "smollm2": [(1, 512), (64, 512)],
        },
        job=(256, 220, 200),
        in_flight=[1, 32, 256],
        num_steps=100,
        step_rows=64,
    )


def tiny() -> Plan:
    """The same names and the same code, for machines without a GPU."""
    return Plan(
        shapes={
            "8b": Shape("tiny Llama", _llama(32, 64, 2, 4, 2, 128)),
            "qwen": Shape("tiny Qwen3", _qwen3(32, 64, 2, 4, 2, 128)),
            "smollm2": Shape("tiny Llama, tied", _llama(32, 64, 2, 4, 2, 128, tie_word_embeddings=True)),
        },
        decode={"8b": [(1, 12), (3, 20)], "qwen": [(2, 12)], "smollm2": [(2, 12)]},
        job=(3, 9, 5),
        in_flight=[1, 2],
        num_steps=4,
        step_rows=2,
    )


def make_model(shape: Shape, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    with device:
        model: PreTrainedModel = auto.from_config(shape.config, dtype=dtype, attn_implementation="sdpa").eval()
    return model
