"""The Triton kernels: store (with rope), attend, merge. They know pages, rows and heads, no model and no schedule.

Everything that differs from step to step is read on the device; what a kernel is compiled for is written in capitals.
Softmax works in powers of two, so scores carry a factor log2(e). Sums are float32.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
NOWHERE = tl.constexpr(float("-inf"))  # the score of a key that is not seen
IS_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def store(
    query,  # [T, H, DIM_K], changed in place where there is a rotation
    key,  # [T, KV_HEADS, DIM_K], the same
    value,  # [T, KV_HEADS, DIM_V]
    cos,  # [T, 2 * HALF] with equal halves
    sin,
    key_pages,
    value_pages,
    slots,  # [T] page * PAGE + offset; below zero: nothing is stored
    query_token_stride,
    query_head_stride,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM_K: tl.constexpr,
    DIM_V: tl.constexpr,
    HALF: tl.constexpr,  # this many pairs (i, i + HALF) of a head's values are rotated
    PAGE: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    HALF_PAD: tl.constexpr,
    REST_PAD: tl.constexpr,
    DIM_V_PAD: tl.constexpr,
):
    """One program for one token and KV head: its queries and key turn, key and value go to their page."""
    token, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + token)
    is_kept = slot >= 0
    slot = tl.maximum(slot, 0)
    place = ((slot // PAGE).to(tl.int64) * KV_HEADS + kv_head) * PAGE + slot % PAGE
    key += token * key_token_stride + kv_head * key_head_stride
    key_pages += place * DIM_K
    if HALF:
        pair = tl.arange(0, HALF_PAD)
        is_pair = pair < HALF
        c = tl.load(cos + token * (2 * HALF) + pair, mask=is_pair, other=0.0).to(tl.float32)
        s = tl.load(sin + token * (2 * HALF) + pair, mask=is_pair, other=0.0).to(tl.float32)

        member = tl.arange(0, GROUP_PAD)
        heads = query + token * query_token_stride + (kv_head * GROUP + member) * query_head_stride
        low_at = heads[:, None] + pair[None, :]
        is_query = (member < GROUP)[:, None] & is_pair[None, :]
        low = tl.load(low_at, mask=is_query, other=0.0).to(tl.float32)
        high = tl.load(low_at + HALF, mask=is_query, other=0.0).to(tl.float32)
        tl.store(low_at, low * c[None, :] - high * s[None, :], mask=is_query)
        tl.store(low_at + HALF, high * c[None, :] + low * s[None, :], mask=is_query)

        low = tl.load(key + pair, mask=is_pair, other=0.0).to(tl.float32)
        high = tl.load(key + HALF + pair, mask=is_pair, other=0.0).to(tl.float32)
        turned_low, turned_high = low * c - high * s, high * c + low * s
        tl.store(key + pair, turned_low, mask=is_pair)
        tl.store(key + HALF + pair, turned_high, mask=is_pair)
        tl.store(key_pages + pair, turned_low, mask=is_pair & is_kept)
        tl.store(key_pages + HALF + pair, turned_high, mask=is_pair & is_kept)
    if 2 * HALF < DIM_K:
        rest = 2 * HALF + tl.arange(0, REST_PAD)
        unturned = tl.load(key + rest, mask=rest < DIM_K, other=0.0)
        tl.store(key_pages + rest, unturned, mask=(rest < DIM_K) & is_kept)
    dim = tl.arange(0, DIM_V_PAD)
    own = tl.load(value + token * value_token_stride + kv_head * value_head_stride + dim, mask=dim < DIM_V, other=0.0)
    tl.store(value_pages + place * DIM_V + dim, own, mask=(dim < DIM_V) & is_kept)


@triton.jit
def _tile(tile, tile_rows, tile_tokens, row_starts, context_lens, ONE_EACH: tl.constexpr, TILE_TOKENS: tl.constexpr):
    """(row, first token, number of tokens, first token's position). ONE_EACH: tile t is row t's only token, token t."""
    if ONE_EACH:
        row, first = tile, tile
        end = tile + 1
    else:
        row, first = tl.load(tile_rows + tile), tl.load(tile_tokens + tile)
        end = tl.load(row_starts + row + 1)
    position = tl.load(context_lens + row) - (end - first)
    return row, first, tl.minimum(end - first, TILE_TOKENS), position


@triton.jit
def _span(position, num_tokens, num_splits, WINDOW: tl.constexpr, MIN_SPLIT: tl.constexpr):
    """Which keys a tile reads: [begin, end), and how many of them each split takes. The same for every reader."""
    end = position + num_tokens
    begin = 0
    if WINDOW:
        begin = tl.maximum(position - (WINDOW - 1), 0)
    length = (end - begin + num_splits - 1) // num_splits
    length = (length + MIN_SPLIT - 1) // MIN_SPLIT * MIN_SPLIT
    return begin, end, tl.maximum(length, MIN_SPLIT)


@triton.jit
def _product(left, right, sums):
    """sums + left @ right, exact to float32. The interpreter would multiply the bits of bfloat16."""
    if IS_INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, sums, input_precision="ieee")


@triton.jit(do_not_specialize=["num_splits"])
def attend(
    query,  # [T, H, DIM_K]
    result,  # [T, H, DIM_V]; untouched where IS_SPLIT
    partial,  # [tiles, KV_HEADS, splits, TILE_TOKENS * GROUP, DIM_V] float32: sums that are not divided yet
    partial_sums,  # [tiles, KV_HEADS, splits, TILE_TOKENS * GROUP, 2] float32: (maximum, sum of weights)
    key_pages,
    value_pages,
    sinks,  # [H] or None
    tile_rows,
    tile_tokens,
    row_starts,
    context_lens,
    page_table,
    query_token_stride,
    query_head_stride,
    page_table_stride,
    num_splits,
    scale,  # times log2(e) where there is no softcap
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: none
    ONE_EACH: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM_K: tl.constexpr,
    DIM_V: tl.constexpr,
    PAGE: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
    DIM_K_PAD: tl.constexpr,
    DIM_V_PAD: tl.constexpr,
):
    """One program for one tile (up to TILE_TOKENS tokens of a row), one KV head, one split of the row's keys.

    The rows of its products are the tile's tokens times the group's query heads, so grouped heads share every load.
    """
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row, first, num_tokens, position = _tile(
        tile, tile_rows, tile_tokens, row_starts, context_lens, ONE_EACH, TILE_TOKENS
    )
    begin, end, length = _span(position, num_tokens, num_splits, WINDOW, MIN_SPLIT)
    if IS_SPLIT:
        begin += split * length
        end = tl.minimum(end, begin + length)
        if begin >= end:
            return

    m = tl.arange(0, BLOCK_M)
    own_token, head = m // GROUP, kv_head * GROUP + m % GROUP
    is_row = own_token < num_tokens  # also false beyond TILE_TOKENS * GROUP
    positions = position + own_token
    dim_k, dim_v = tl.arange(0, DIM_K_PAD), tl.arange(0, DIM_V_PAD)
    tokens = (first + own_token).to(tl.int64)
    query_at = query + tokens * query_token_stride + head * query_head_stride
    q = tl.load(query_at[:, None] + dim_k[None, :], mask=is_row[:, None] & (dim_k < DIM_K)[None, :], other=0.0)

    highest = tl.full([BLOCK_M], NOWHERE, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if sinks is not None:  # one more logit per head, which has no value; it belongs to the first split
        sink = tl.load(sinks + head, mask=is_row, other=0.0).to(tl.float32) * LOG2E
        highest = tl.where(split == 0, sink, highest)
        total = tl.where(split == 0, 1.0, total)
    sums = tl.zeros([BLOCK_M, DIM_V_PAD], tl.float32)

    pages = page_table + row.to(tl.int64) * page_table_stride
    n = tl.arange(0, BLOCK_N)
    for start in range(begin, end, BLOCK_N):
        at = start + n
        is_there = at < end
        page = tl.load(pages + at // PAGE, mask=is_there, other=0).to(tl.int64)
        place = (page * KV_HEADS + kv_head) * PAGE + at % PAGE
        k = tl.load(
            key_pages + place[:, None] * DIM_K + dim_k[None, :],
            mask=is_there[:, None] & (dim_k < DIM_K)[None, :],
            other=0.0,
        )
        v = tl.load(
            value_pages + place[:, None] * DIM_V + dim_v[None, :],
            mask=is_there[:, None] & (dim_v < DIM_V)[None, :],
            other=0.0,
        )
        scores = _product(q, tl.trans(k.to(q.dtype)), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)) * scale
        if HAS_SOFTCAP:  # tanh(x) = 1 - 2 / (1 + e^2x)
            scores = 1.0 - 2.0 / (1.0 + tl.exp2(scores * (2.0 * LOG2E) / softcap))
            scores = scores * (softcap * LOG2E)
        is_seen = is_there[None, :] & (at[None, :] <= positions[:, None])
        if WINDOW:
            is_seen = is_seen & (at[None, :] > positions[:, None] - WINDOW)
        scores = tl.where(is_seen, scores, NOWHERE)
        higher = tl.maximum(highest, tl.max(scores, 1))
        base = tl.where(higher == NOWHERE, 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        fading = tl.exp2(highest - base)
        total = total * fading + tl.sum(weights, 1)
        sums = _product(weights.to(v.dtype), v, sums * fading[:, None])
        highest = higher

    is_result = is_row[:, None] & (dim_v < DIM_V)[None, :]
    if IS_SPLIT:
        index = ((tile.to(tl.int64) * KV_HEADS + kv_head) * num_splits + split) * (TILE_TOKENS * GROUP) + m
        tl.store(partial + index[:, None] * DIM_V + dim_v[None, :], sums, mask=is_result)
        tl.store(partial_sums + index * 2, highest, mask=is_row)
        tl.store(partial_sums + index * 2 + 1, total, mask=is_row)
    else:
        total = tl.where(total == 0.0, 1.0, total)  # a padding row saw nothing
        at_result = (tokens * (KV_HEADS * GROUP) + head) * DIM_V
        tl.store(result + at_result[:, None] + dim_v[None, :], sums / total[:, None], mask=is_result)


@triton.jit(do_not_specialize=["num_splits"])
def merge(
    result,  # [T, H, DIM_V]
    partial,
    partial_sums,
    tile_rows,
    tile_tokens,
    row_starts,
    context_lens,
    num_splits,
    WINDOW: tl.constexpr,
    ONE_EACH: tl.constexpr,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM_V: tl.constexpr,
    TILE_TOKENS: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
    DIM_V_PAD: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One program for one query (a tile's token and head): brings its splits together."""
    tile, kv_head, m = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    _, first, num_tokens, position = _tile(
        tile, tile_rows, tile_tokens, row_starts, context_lens, ONE_EACH, TILE_TOKENS
    )
    if m // GROUP >= num_tokens:
        return
    begin, end, length = _span(position, num_tokens, num_splits, WINDOW, MIN_SPLIT)
    num_used = (end - begin + length - 1) // length
    dim = tl.arange(0, DIM_V_PAD)
    s = tl.arange(0, BLOCK_S)
    highest = tl.full([1], NOWHERE, tl.float32)
    total = tl.zeros([1], tl.float32)
    sums = tl.zeros([DIM_V_PAD], tl.float32)
    splits = (tile.to(tl.int64) * KV_HEADS + kv_head) * num_splits
    for start in range(0, num_used, BLOCK_S):
        is_there = start + s < num_used
        index = (splits + start + s) * (TILE_TOKENS * GROUP) + m
        own_highest = tl.load(partial_sums + index * 2, mask=is_there, other=NOWHERE)
        own_total = tl.load(partial_sums + index * 2 + 1, mask=is_there, other=0.0)
        own_sums = tl.load(
            partial + index[:, None] * DIM_V + dim[None, :],
            mask=is_there[:, None] & (dim < DIM_V)[None, :],
            other=0.0,
        )
        higher = tl.maximum(highest, tl.max(own_highest, 0))
        base = tl.where(higher == NOWHERE, 0.0, higher)
        fading, weight = tl.exp2(highest - base), tl.exp2(own_highest - base)
        total = total * fading + tl.sum(own_total * weight, 0)
        sums = sums * fading + tl.sum(own_sums * weight[:, None], 0)
        highest = higher
    total = tl.where(total == 0.0, 1.0, total)
    token, head = first.to(tl.int64) + m // GROUP, kv_head * GROUP + m % GROUP
    tl.store(result + (token * (KV_HEADS * GROUP) + head) * DIM_V + dim, sums / total, mask=dim < DIM_V)
