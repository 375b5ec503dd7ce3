"""Attention from torch's own scaled_dot_product_attention: needs no compiler, runs on every device. Knows no model.

A packed row is three kinds of rows, and each goes its cheapest way:
- fresh prompts: causal SDPA on the step's own keys, nothing is gathered;
- chunks with history: the row's pages are gathered, with a mask that is causal from the lower right;
- decode rows: bucketed by number of pages and gathered together. The queries of one KV head form the query axis,
  [b, kv_heads, group, D], so that grouped heads never repeat keys.
Softcap and sinks have no place in SDPA: these layers run the same plan through plain matrix products.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tokenmill_worker.engine.attention.backend import AttentionSpec, KVPages, store
from tokenmill_worker.engine.attention.step import AttentionStep, RowView, visible
from tokenmill_worker.engine.batch import PAGE_SIZE

BUCKET_GROWTH = 1.25  # a bucket's longest row has at most this many times its shortest row's pages: bounds wasted reads
BUCKET_SLACK_PAGES = 2  # ... but rows this near to each other always share a bucket: short rows cost calls, not bytes
PRODUCTS_FROM_ROWS = 4


class Fresh(NamedTuple):
    """Tokens [start, end) are a whole sequence. `mask` is None where plain causal attention is right."""

    start: int
    end: int
    mask: Tensor | None  # [t, t]


class Chunk(NamedTuple):
    start: int
    end: int
    pages: Tensor  # [kv_heads * n] rows of the [num_pages * kv_heads, ...] view
    mask: Tensor  # [t, n * PAGE_SIZE]


class Bucket(NamedTuple):
    """b decode rows read together, each n pages; shorter rows repeat their own last page under the mask."""

    tokens: Tensor  # [b]
    pages: Tensor  # [b * kv_heads * n] rows of the [num_pages * kv_heads, ...] view
    mask: Tensor  # [b, 1, 1, n * PAGE_SIZE]


class Plan(NamedTuple):
    fresh: Sequence[Fresh]
    chunks: Sequence[Chunk]
    buckets: Sequence[Bucket]


class SdpaBackend:
    name = "sdpa"

    def __init__(self, note: str = "") -> None:
        self.note = note

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, pages: KVPages, step: AttentionStep, spec: AttentionSpec
    ) -> Tensor:
        store(pages, step, key, value)
        kv_heads, window = key.shape[1], spec.window
        plan = step.plan(("sdpa", kv_heads, window), lambda: _make_plan(step, kv_heads, window, query.device))
        result = query.new_empty(query.shape[0], query.shape[1], value.shape[2])
        for fresh in plan.fresh:
            own = slice(fresh.start, fresh.end)
            result[own] = _attend_run(query[own], _heads_first(key[own]), _heads_first(value[own]), fresh.mask, spec)
        for chunk in plan.chunks:
            keys, values = (_gather(part, chunk.pages, 1) for part in pages)
            result[chunk.start : chunk.end] = _attend_run(
                query[chunk.start : chunk.end], keys, values, chunk.mask, spec
            )
        for bucket in plan.buckets:
            keys, values = (_gather(part, bucket.pages, len(bucket.tokens)) for part in pages)
            decoded = _attend_bucket(query.index_select(0, bucket.tokens), keys, values, bucket.mask, spec)
            result.index_copy_(0, bucket.tokens, decoded)
        return result


def _heads_first(tokens: Tensor) -> Tensor:
    return tokens.transpose(0, 1).unsqueeze(0)  # [t, heads, D] -> [1, heads, t, D]


def _gather(pages: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """[num_pages, kv_heads, PAGE_SIZE, D] -> [num_rows, kv_heads, n * PAGE_SIZE, D], with a single copy."""
    kv_heads, head_dim = pages.shape[1], pages.shape[3]
    tiles = pages.view(-1, PAGE_SIZE * head_dim).index_select(0, index)
    return tiles.view(num_rows, kv_heads, -1, head_dim)


def _attend_run(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, spec: AttentionSpec) -> Tensor:
    """One row's tokens: query [t, H, Dk], keys and values [1, kv_heads, L, D] -> [t, H, Dv]. No mask: causal."""
    if spec.softcap is None and spec.sinks is None:
        attended = F.scaled_dot_product_attention(
            _heads_first(query),
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=spec.scale,
            enable_gqa=query.shape[1] != keys.shape[1],
        )
    else:
        attended = _plain_attention(_heads_first(query), keys, values, mask, spec)
    return attended[0].transpose(0, 1)


def _attend_bucket(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, spec: AttentionSpec) -> Tensor:
    """b rows of one token: query [b, H, Dk], keys and values [b, kv_heads, L, D] -> [b, H, Dv]."""
    is_beyond_sdpa = spec.softcap is not None or spec.sinks is not None
    if is_beyond_sdpa or _prefers_products(query):
        return _plain_attention(query.unsqueeze(2), keys, values, mask, spec).squeeze(2)
    grouped = query.view(query.shape[0], keys.shape[1], -1, query.shape[2])  # [b, kv_heads, group, Dk]
    attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=spec.scale)
    return attended.reshape(query.shape[0], query.shape[1], -1)


def _prefers_products(query: Tensor) -> bool:
    """The CPU flash kernel handles few queries per head badly in bfloat16: 1.5 ms for 32 rows of 160 tokens (9 heads,
    3 KV heads, 64 wide, one core), where two oneDNN products and a softmax take 0.5 ms."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and len(query) >= PRODUCTS_FROM_ROWS


def _plain_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, spec: AttentionSpec) -> Tensor:
    """SDPA's contract with softcap and sinks: query [b, H, t, Dk], keys [b, kv_heads, L, Dk] -> [b, H, t, Dv]."""
    b, heads, t, _ = query.shape
    kv_heads, length = keys.shape[1], keys.shape[2]
    grouped = query.reshape(b, kv_heads, -1, query.shape[3])  # the group's queries share one product with their keys
    scores = (grouped @ keys.transpose(2, 3)).float().view(b, heads, t, length).mul_(spec.scale)
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    if mask is None:
        mask = torch.ones(t, length, dtype=torch.bool, device=query.device).tril()
    weights = _softmax_with_sinks(scores.masked_fill_(~mask, -torch.inf), spec.sinks).to(values.dtype)
    return (weights.view(b, kv_heads, -1, length) @ values).view(b, heads, t, -1)


def _softmax_with_sinks(scores: Tensor, sinks: Tensor | None) -> Tensor:
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.float().view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1]


def _make_plan(step: AttentionStep, kv_heads: int, window: int | None, device: torch.device) -> Plan:
    rows = list(step.rows())
    decode = [row for row in rows if row.num_tokens == 1]
    longer = [row for row in rows if row.num_tokens > 1]
    return Plan(
        fresh=[_fresh(row, window, device) for row in longer if row.is_fresh],
        chunks=[_chunk(row, kv_heads, window, device) for row in longer if not row.is_fresh],
        buckets=[_bucket(group, kv_heads, window, device) for group in _by_num_pages(decode, window)],
    )


def _fresh(row: RowView, window: int | None, device: torch.device) -> Fresh:
    if window is None or row.num_tokens <= window:
        return Fresh(row.start, row.end, None)
    positions = np.arange(row.num_tokens)
    return Fresh(row.start, row.end, torch.as_tensor(visible(positions[:, None], positions, window), device=device))


def _chunk(row: RowView, kv_heads: int, window: int | None, device: torch.device) -> Chunk:
    first = row.first_page_in(window)
    keys = np.arange(first * PAGE_SIZE, len(row.page_ids) * PAGE_SIZE)
    queries = np.arange(row.context - row.num_tokens, row.context)
    return Chunk(
        start=row.start,
        end=row.end,
        pages=_tile_index(row.page_ids[None, first:], kv_heads, device),
        mask=torch.as_tensor(visible(queries[:, None], keys, window), device=device),
    )


def _by_num_pages(rows: Sequence[RowView], window: int | None) -> Iterator[list[RowView]]:
    def num_pages(row: RowView) -> int:
        return len(row.page_ids) - row.first_page_in(window)

    group: list[RowView] = []
    for row in sorted(rows, key=num_pages):
        shortest = num_pages(group[0]) if group else 0
        if group and num_pages(row) > max(shortest * BUCKET_GROWTH, shortest + BUCKET_SLACK_PAGES):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _bucket(rows: Sequence[RowView], kv_heads: int, window: int | None, device: torch.device) -> Bucket:
    first = np.array([row.first_page_in(window) for row in rows])[:, None]
    num_pages = np.array([len(row.page_ids) for row in rows])[:, None]
    columns = first + np.arange((num_pages - first).max())  # [b, n] each row's own page numbers
    table = np.stack(
        [row.page_ids[own] for row, own in zip(rows, np.minimum(columns, num_pages - 1), strict=True)]
    )  # [b, n]
    keys = (columns[:, :, None] * PAGE_SIZE + np.arange(PAGE_SIZE)).reshape(len(rows), -1)
    last = np.array([row.context - 1 for row in rows])[:, None]
    return Bucket(
        tokens=torch.as_tensor(np.array([row.start for row in rows]), device=device),
        pages=_tile_index(table, kv_heads, device),
        mask=torch.as_tensor(visible(last, keys, window)[:, None, None, :], device=device),
    )


def _tile_index(table: np.ndarray, kv_heads: int, device: torch.device) -> Tensor:
    """Page ids [b, n] -> rows of the [num_pages * kv_heads, PAGE_SIZE * D] view in (b, kv_heads, n) order."""
    tiles = table.astype(np.int64)[:, None, :] * kv_heads + np.arange(kv_heads)[None, :, None]
    return torch.as_tensor(tiles.reshape(-1), device=device)
