"""What the ops return, without computing it: for torch.compile and for meta tensors."""

from functools import cache

import torch
from torch import Tensor


@cache
def register() -> None:
    for name, shape in {
        "rms_norm": _like_first,
        "add_rms_norm": _like_first,
        "act_mul": _half_as_wide,
        "argmax": _row_numbers,
        "attention": _attended,
        "rope_attention": _attended_flat,
        "linear_w8a8": _as_wide_as_scales,
        "linear_w8a16": _as_wide_as_scales,
        "linear_bf16": _of_columns,
        "screened_argmax": _row_numbers,
    }.items():
        torch.library.register_fake(f"tokenmill_cpu::{name}")(shape)


def _like_first(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


def _half_as_wide(gate_up: Tensor, act: str) -> Tensor:
    del act
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


def _row_numbers(rows: Tensor, *_: object) -> Tensor:
    return rows.new_empty(rows.shape[0], dtype=torch.int64)


def _attended(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    del k
    return q.new_empty(q.shape[0], q.shape[1], v.shape[2])


def _attended_flat(qkv: Tensor, cos: Tensor, sin: Tensor, key_pages: Tensor, *others: object) -> Tensor:
    del cos, sin
    num_heads = others[6]
    assert isinstance(num_heads, int)
    return qkv.new_empty(qkv.shape[0], num_heads * key_pages.shape[3])


def _as_wide_as_scales(x: Tensor, packed: Tensor, scales: Tensor, *_: object) -> Tensor:
    del packed
    return x.new_empty(x.shape[0], scales.shape[0])


def _of_columns(x: Tensor, packed: Tensor, num_columns: int, *_: object) -> Tensor:
    del packed
    return x.new_empty(x.shape[0], num_columns)
