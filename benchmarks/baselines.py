"""What a user would write first over transformers: batches that wait for their longest answer. Greedy, with a KV cache.

`padded` is `pad_sequence`: prompts padded to the batch's longest, every row decoded until the longest answer is done.
`packed` is `pack_sequence`: prompts in one row without padding, under a block-diagonal mask, and at each decode step
only the rows that are still running, the longest answers first (that is what PackedSequence.batch_sizes says). Nobody
joins before the batch is over, in either. The key and value cache stays rectangular: pack_sequence has no form for it,
so a batch's shorter contexts are padded inside the cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenmill_worker.engine.loading import quiet_transformers
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, pad_sequence
from transformers import AutoModelForCausalLM, DynamicCache

TokenIds = list[int]


@dataclass(slots=True)
class Cost:
    """What was computed for what was asked: positions run through the model, and tokens that somebody wanted."""

    num_steps: int = 0
    num_positions: int = 0
    num_useful: int = 0

    def count(self, num_positions: int, num_useful: int) -> None:
        self.num_steps += 1
        self.num_positions += num_positions
        self.num_useful += num_useful

    @property
    def waste(self) -> float:
        """Share of the positions that nobody wanted."""
        return 1 - self.num_useful / self.num_positions


Baseline = Callable[[torch.nn.Module, Sequence[TokenIds], Sequence[int], Cost], list[TokenIds]]


def load_model(folder: Path, dtype: str) -> torch.nn.Module:
    """The stock class with torch's own attention."""
    with quiet_transformers():
        model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
    return model.eval()


@torch.inference_mode()
def run_static(
    model: torch.nn.Module, prompts: Sequence[TokenIds], lengths: Sequence[int], *, slots: int, baseline: Baseline
) -> tuple[list[TokenIds], Cost]:
    """Batches of `slots` requests in the order they came; answers in that order."""
    cost, answers = Cost(), []
    for start in range(0, len(prompts), slots):
        own = slice(start, start + slots)
        answers += baseline(model, prompts[own], lengths[own], cost)
    return answers, cost


def padded(model: torch.nn.Module, prompts: Sequence[TokenIds], lengths: Sequence[int], cost: Cost) -> list[TokenIds]:
    rows = [torch.tensor(prompt) for prompt in prompts]
    token_ids = pad_sequence(rows, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    cache = DynamicCache()
    cost.count(token_ids.numel(), sum(map(len, prompts)))
    drawn = [_forward(model, token_ids, mask, cache)]
    for number in range(1, max(lengths)):
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        cost.count(len(rows), sum(length > number for length in lengths))
        drawn.append(_forward(model, drawn[-1], mask, cache))
    answers = torch.cat(drawn, dim=1).tolist()
    return [answer[:length] for answer, length in zip(answers, lengths, strict=True)]


def packed(model: torch.nn.Module, prompts: Sequence[TokenIds], lengths: Sequence[int], cost: Cost) -> list[TokenIds]:
    plan = pack_sequence([torch.empty(length) for length in lengths], enforce_sorted=False)
    assert plan.sorted_indices is not None  # since the lengths came unsorted
    order = plan.sorted_indices.tolist()
    rows = [torch.tensor(prompts[index]) for index in order]
    cost.count(sum(map(len, rows)), sum(map(len, rows)))
    tokens, mask, cache = _packed_prefill(model, rows)
    drawn = [tokens]
    for num_rows in plan.batch_sizes.tolist()[1:]:
        mask = torch.cat([mask[:num_rows], mask.new_ones(num_rows, 1)], dim=1)
        _narrow(cache, num_rows)
        cost.count(num_rows, num_rows)
        drawn.append(_forward(model, drawn[-1][:num_rows], mask, cache))
    answers: list[TokenIds] = [[] for _ in rows]
    for place, index in enumerate(order):
        answers[index] = [int(step[place]) for step in drawn if place < len(step)]
    return answers


def _forward(model: torch.nn.Module, token_ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
    """The next token of each row, [rows, 1]; `mask` covers cache and tokens."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -token_ids.shape[1] :]
    logits = model(
        input_ids=token_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
    ).logits
    best: Tensor = logits[:, -1].argmax(-1, keepdim=True)
    return best


def _packed_prefill(model: torch.nn.Module, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor, DynamicCache]:
    """All prompts in one row; then the cache of each, padded on the left to the longest."""
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    owner = torch.cat([torch.full((len(row),), number) for number, row in enumerate(rows)])
    order = torch.arange(len(owner))
    visible = (owner[:, None] == owner) & (order[:, None] >= order)
    ends = torch.tensor([len(row) for row in rows]).cumsum(0) - 1
    run = DynamicCache()
    logits = model(
        input_ids=torch.cat(list(rows))[None],
        attention_mask=visible[None, None],
        position_ids=positions[None],
        past_key_values=run,
        logits_to_keep=ends,
    ).logits[0]
    lengths = [len(row) for row in rows]
    cache = DynamicCache()
    for index, layer in enumerate(_layers(run)):
        cache.update(_apart(layer.keys, lengths), _apart(layer.values, lengths), index)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    return logits.argmax(-1, keepdim=True), mask, cache


def _apart(run: Tensor, lengths: Sequence[int]) -> Tensor:
    """[1, heads, sum of lengths, D] -> [rows, heads, longest, D]."""
    parts = [part.transpose(0, 1) for part in torch.split(run[0], list(lengths), dim=1)]
    return pad_sequence(parts, batch_first=True, padding_side="left").transpose(1, 2).contiguous()


def _narrow(cache: DynamicCache, num_rows: int) -> None:
    """Only the first rows run on."""
    for layer in _layers(cache):
        if layer.keys.shape[0] > num_rows:
            layer.keys, layer.values = layer.keys[:num_rows], layer.values[:num_rows]


def _layers(cache: DynamicCache) -> list[Any]:
    """Each with `keys` and `values`, [rows, heads, tokens, D]: a model without recurrent layers has no others."""
    return list(cache.layers)
