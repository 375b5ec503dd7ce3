"""Starts the kernels with their sizes. Importing this needs triton. Knows no backend."""

import math

import torch
from torch import Tensor

from tokenmill_worker.engine.attention.backend import AttentionSpec, KVPages
from tokenmill_worker.engine.attention.device_rows import DeviceRows
from tokenmill_worker.engine.attention.triton import kernels
from tokenmill_worker.engine.attention.triton.device import Device
from tokenmill_worker.engine.attention.triton.plan import Tiles
from tokenmill_worker.engine.attention.triton.tiling import Heads, Tiling, num_splits, power_of_two
from tokenmill_worker.engine.batch import PAGE_SIZE

LOG2E = math.log2(math.e)
MERGED_AT_ONCE = 16  # splits
SMALL_PROGRAM = 2048  # values that one warp moves without many turns


def heads_of(query: Tensor, pages: KVPages) -> Heads:
    kv_heads, key_dim = pages.keys.shape[1], pages.keys.shape[3]
    return Heads(query.shape[1], kv_heads, key_dim, pages.values.shape[3], pages.keys.element_size())


def store(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rope: tuple[Tensor, Tensor] | None,
    pages: KVPages,
    slots: Tensor,
) -> None:
    """Keys and values into their slots; with a rotation (cos and sin [T, R]), query and key are turned in place."""
    heads = heads_of(query, pages)
    cos, sin = (part.contiguous() for part in rope) if rope is not None else (None, None)
    half = 0 if cos is None else cos.shape[1] // 2
    group_pad, half_pad = power_of_two(heads.group), power_of_two(max(1, half))
    kernels.store[(len(query), heads.kv_heads)](
        query,
        key,
        value,
        cos,
        sin,
        pages.keys,
        pages.values,
        slots,
        *query.stride()[:2],
        *key.stride()[:2],
        *value.stride()[:2],
        GROUP=heads.group,
        KV_HEADS=heads.kv_heads,
        DIM_K=heads.key_dim,
        DIM_V=heads.value_dim,
        HALF=half,
        PAGE=PAGE_SIZE,
        GROUP_PAD=group_pad,
        HALF_PAD=half_pad,
        REST_PAD=power_of_two(max(1, heads.key_dim - 2 * half)),
        DIM_V_PAD=power_of_two(heads.value_dim),
        num_warps=1 if group_pad * half_pad <= SMALL_PROGRAM else 4,
    )


def attend(
    query: Tensor,
    result: Tensor,
    pages: KVPages,
    rows: DeviceRows,
    tiles: Tiles,
    spec: AttentionSpec,
    tiling: Tiling,
    device: Device,
) -> None:
    """The tiles' tokens of result [T, H, Dv], from the pages. Two kernels where the keys are split."""
    heads = heads_of(query, pages)
    splits = num_splits(tiles.num_tiles, heads, tiling, device)
    partial, partial_sums = _partials(tiles, heads, tiling, splits, query.device) if splits > 1 else (None, None)
    own = (tiles.rows, tiles.tokens, rows.row_starts, rows.context_lens)
    shared = {
        "WINDOW": spec.window or 0,
        "ONE_EACH": tiles.rows is None,
        "GROUP": heads.group,
        "KV_HEADS": heads.kv_heads,
        "DIM_V": heads.value_dim,
        "TILE_TOKENS": tiling.tokens(heads.group),
        "MIN_SPLIT": 2 * tiling.keys,
        "DIM_V_PAD": max(16, power_of_two(heads.value_dim)),
    }
    kernels.attend[(tiles.num_tiles, heads.kv_heads, splits)](
        query,
        result,
        partial,
        partial_sums,
        pages.keys,
        pages.values,
        spec.sinks,
        *own,
        rows.page_table,
        *query.stride()[:2],
        rows.page_table.stride(0),
        splits,
        spec.scale * (1.0 if spec.softcap else LOG2E),
        spec.softcap or 0.0,
        HAS_SOFTCAP=spec.softcap is not None,
        IS_SPLIT=splits > 1,
        DIM_K=heads.key_dim,
        PAGE=PAGE_SIZE,
        BLOCK_M=tiling.rows,
        BLOCK_N=tiling.keys,
        DIM_K_PAD=max(16, power_of_two(heads.key_dim)),
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **shared,
    )
    if splits > 1:
        queries = tiling.tokens(heads.group) * heads.group
        kernels.merge[(tiles.num_tiles, heads.kv_heads, queries)](
            result, partial, partial_sums, *own, splits, BLOCK_S=MERGED_AT_ONCE, num_warps=1, **shared
        )


def _partials(tiles: Tiles, heads: Heads, tiling: Tiling, splits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    queries = tiling.tokens(heads.group) * heads.group
    shape = (tiles.num_tiles, heads.kv_heads, splits, queries)
    sums = torch.empty(*shape, heads.value_dim, dtype=torch.float32, device=device)
    return sums, torch.empty(*shape, 2, dtype=torch.float32, device=device)
