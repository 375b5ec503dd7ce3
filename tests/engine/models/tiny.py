"""Tiny random checkpoints of many architectures, made from their configs: no download. Knows no engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Cohere2Config,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    JambaConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Starcoder2Config,
)

VOCAB = 128
WINDOW = 16  # shorter than the tests' sequences, so that it matters
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
UNGROUPED = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
GPT2_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

PACKABLE: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=16),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=WINDOW),
    "gemma2": lambda: Gemma2Config(
        **SIZES, head_dim=16, sliding_window=WINDOW, attn_logit_softcapping=3.0, query_pre_attn_scalar=16
    ),
    "gemma3": lambda: Gemma3TextConfig(**{**SIZES, "num_hidden_layers": 7}, head_dim=16, sliding_window=WINDOW),
    "phi3": lambda: Phi3Config(**SIZES),
    "gpt2": lambda: GPT2Config(**GPT2_SIZES),
    "gpt_neox": lambda: GPTNeoXConfig(**UNGROUPED),
    "opt": lambda: OPTConfig(**UNGROUPED, ffn_dim=64, word_embed_proj_dim=16),
    "starcoder2": lambda: Starcoder2Config(**SIZES, sliding_window=WINDOW),
    "olmo2": lambda: Olmo2Config(**SIZES),
    "cohere2": lambda: Cohere2Config(**{**SIZES, "num_hidden_layers": 5}, sliding_window=WINDOW),
    "granite": lambda: GraniteConfig(**SIZES, attention_multiplier=0.3, residual_multiplier=0.7),
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4),
    "gpt_oss": lambda: GptOssConfig(
        **SIZES, head_dim=16, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2
    ),
    "deepseek_v3": lambda: DeepseekV3Config(  # keys and values of different widths
        **{**SIZES, "num_key_value_heads": 4},
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
    ),
    "gemma3n": lambda: Gemma3nTextConfig(  # the last layers attend to the keys of earlier ones
        **{**SIZES, "num_hidden_layers": 6, "intermediate_size": [64] * 6},
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 3,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.0] * 6,
    ),
}

REFUSED: dict[str, tuple[Callable[[], PretrainedConfig], str]] = {
    "bloom": (lambda: BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4), "AttentionInterface"),
    "falcon": (lambda: FalconConfig(**UNGROUPED), "AttentionInterface"),
    "mpt": (lambda: MptConfig(vocab_size=VOCAB, d_model=32, n_heads=4, n_layers=2), "AttentionInterface"),
    "mamba": (lambda: MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2), "recurrent state"),
    "jamba": (lambda: JambaConfig(**SIZES, num_experts=2, use_mamba_kernels=False), "recurrent state"),
}

LONGROPE_ORIGINAL = 64


def phi3_longrope() -> PretrainedConfig:
    rope: dict[str, Any] = {"rope_type": "longrope", "rope_theta": 10000.0}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    return Phi3Config(
        **SIZES,
        max_position_embeddings=256,
        original_max_position_embeddings=LONGROPE_ORIGINAL,
        rope_parameters={**rope, "original_max_position_embeddings": LONGROPE_ORIGINAL},
    )


def llama4_chunked() -> PretrainedConfig:
    return Llama4TextConfig(
        **SIZES,
        head_dim=8,
        intermediate_size_mlp=64,
        num_local_experts=2,
        attention_chunk_size=96,
        attn_temperature_tuning=False,
        use_qk_norm=False,
    )


def make_model(config: PretrainedConfig) -> PreTrainedModel:
    """Random weights wide enough that a model has opinions: with the default ones it repeats itself at once."""
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or name.endswith("sinks"):
            torch.nn.init.normal_(parameter, std=1.0 if name.endswith("sinks") else 0.15)
    return model


def save_model(config: PretrainedConfig, folder: Path) -> Path:
    make_model(config).save_pretrained(folder)
    return folder
