"""The attention that all others are measured against: one sequence at a time, float32, written as the formula reads."""

import numpy as np
import torch
from torch import Tensor

from tokenmill_worker.engine.attention.backend import AttentionSpec, KVPages, store
from tokenmill_worker.engine.attention.step import AttentionStep, RowView, visible


class ReferenceBackend:
    """For tests and for doubt. Reads everything back through the page table, fresh prompts too."""

    name = "reference"
    note = ""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, pages: KVPages, step: AttentionStep, spec: AttentionSpec
    ) -> Tensor:
        store(pages, step, key, value)
        result = query.new_empty(query.shape[0], query.shape[1], pages.values.shape[-1])
        for row in step.rows():
            keys, values = (_gather(part, row) for part in pages)
            result[row.start : row.end] = _attend_row(query[row.start : row.end], keys, values, row, spec)
        return result


def _gather(pages: Tensor, row: RowView) -> Tensor:
    ids = torch.as_tensor(row.page_ids.astype(np.int64), device=pages.device)
    own = pages.index_select(0, ids).transpose(0, 1).flatten(1, 2)  # [kv_heads, pages * PAGE_SIZE, D]
    return own[:, : row.context].float()


def _attend_row(query: Tensor, keys: Tensor, values: Tensor, row: RowView, spec: AttentionSpec) -> Tensor:
    """query [t, H, Dk], keys [kv_heads, context, Dk], values [kv_heads, context, Dv] -> [t, H, Dv]."""
    group = query.shape[1] // keys.shape[0]
    keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
    scores = query.transpose(0, 1).float() @ keys.transpose(1, 2) * spec.scale  # [H, t, context]
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    positions = np.arange(row.context)
    mask = visible(positions[-row.num_tokens :, None], positions, spec.window)
    scores = scores.masked_fill(~torch.as_tensor(mask, device=scores.device), -torch.inf)
    weights = _softmax(scores, spec.sinks)
    return (weights @ values).transpose(0, 1).to(query.dtype)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.float().view(-1, 1, 1).expand(-1, scores.shape[1], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1]
