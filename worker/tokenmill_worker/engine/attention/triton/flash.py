"""FlashAttention 2 as stock torch carries it, for prompts that lie whole in a step. Knows no pages."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenmill_worker.engine.attention.backend import AttentionSpec
from tokenmill_worker.engine.attention.triton.plan import Prompts

DTYPES = (torch.float16, torch.bfloat16)
MAX_DIM = 256
ARGUMENTS = ("query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal")
OPTIONS = ("scale", "window_size_left", "window_size_right")
TOLERANCE = 0.02  # of values around 1 in bfloat16; a mask that is off by one key differs by 0.1 and more

_WINDOW = 5


def knows(query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> bool:
    dim = query.shape[2]
    is_plain = spec.softcap is None and spec.sinks is None
    is_known = query.dtype in DTYPES and dim == value.shape[2] and dim % 8 == 0 and dim <= MAX_DIM
    return is_plain and is_known and query.dtype == key.dtype


def attend(query: Tensor, key: Tensor, value: Tensor, prompts: Prompts, spec: AttentionSpec) -> Tensor:
    """query [t, H, D], key and value [t, kv_heads, D], the tokens of `prompts` -> [t, H, D]."""
    result: Tensor = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        prompts.starts,
        prompts.starts,
        prompts.longest,
        prompts.longest,
        0.0,
        True,
        False,
        scale=spec.scale,
        window_size_left=None if spec.window is None else spec.window - 1,
        window_size_right=None if spec.window is None else 0,
    )[0]
    return result


def objection(device: torch.device) -> str:
    """Why it cannot be used here; empty where it computes what it should. Waits for the device."""
    if device.type != "cuda":
        return "it runs on CUDA devices only"
    if missing := missing_arguments():
        return f"this torch's _flash_attention_forward has no {', '.join(missing)}"
    try:
        differs = max(_difference(device, window) for window in (None, _WINDOW))
    except RuntimeError as error:
        return str(error).strip().split("\n")[0]
    return "" if differs <= TOLERANCE else f"its result differs by {differs:.2g}"


def missing_arguments() -> list[str]:
    schema = torch.ops.aten._flash_attention_forward.default._schema
    names = [argument.name for argument in schema.arguments]
    return [name for name in ARGUMENTS if name not in names[: len(ARGUMENTS)]] + [
        name for name in OPTIONS if name not in names
    ]


def _difference(device: torch.device, window: int | None) -> float:
    """The largest, over two sequences with grouped heads."""
    lengths, generator = (3, 40), torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(sum(lengths), heads, 64, generator=generator).to(device, torch.bfloat16) for heads in (4, 2, 2)
    )
    starts = torch.tensor([0, 3, 43], dtype=torch.int32, device=device)
    ours = attend(query, key, value, Prompts(0, 43, starts, 40), AttentionSpec(0.125, window))
    worst = 0.0
    for start, end in ((0, 3), (3, 43)):
        q, k, v = (part[start:end].transpose(0, 1).float() for part in (query, key, value))
        at = torch.arange(end - start, device=device)
        is_seen = (at <= at[:, None]) & (at > at[:, None] - (window or math.inf))
        truth = F.scaled_dot_product_attention(q, k, v, attn_mask=is_seen, scale=0.125, enable_gqa=True)
        worst = max(worst, float((ours[start:end].transpose(0, 1).float() - truth).abs().max()))
    return worst
