"""Draws one token per row from logits, by its request's parameters and one uniform number. Knows no model, no batch.

The order of operations: logit_bias, penalties, bans (min_tokens), temperature, top_k, top_p, min_p, inverse CDF. The
CDF runs over tokens by descending probability, equal ones by ascending id, and the uniform depends on (seed, position)
alone: so a draw does not depend on who else is in the batch, on a retry or on a restart.

Every filter keeps a prefix of that order. So rows are sorted only as far as their draw needs: the likeliest few
first, the whole vocabulary only for the rows whose draw is not decided within them.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenmill_worker.engine.api import Logprobs, RowError
from tokenmill_worker.engine.batch import Sampled, SampleRow
from tokenmill_worker.engine.uniform import uniforms

NUM_CANDIDATES = (256, 4096)  # 0.2 and 1 ms a row for a vocabulary of 49,152 on one core; a full sort takes 4.5 ms
COLDEST = 1e-30  # a lower temperature cannot differ from greedy, and would be 0 in float32

NOT_FINITE = RowError("non_finite_logits", "the model computed NaN or infinite logits for this row")


@torch.inference_mode()
def sample(logits: Tensor, rows: Sequence[SampleRow]) -> list[Sampled]:
    """logits [S, V], one row per sample. A row of NaN or infinity gets an error; its neighbours do not notice."""
    if not rows:
        return []
    raw = logits.float()
    edited = _edited(raw, rows)
    peaks, token_ids = edited.max(-1)  # of equal logits the lowest id; NaN and +inf win, so the peak shows them
    drawing = [index for index, row in enumerate(rows) if not row.params.is_greedy]
    if drawing:
        where = torch.as_tensor(drawing, device=raw.device)
        own_logits = edited if len(drawing) == len(rows) else edited.index_select(0, where)
        drawn = _draw(own_logits, [rows[index] for index in drawing])
        token_ids = token_ids.index_copy(0, where, drawn)
    logprobs = _logprobs(raw, token_ids, rows)
    chosen = torch.stack([token_ids.double(), peaks.isfinite().double()]).tolist()  # one transfer; ids are exact
    return [
        Sampled(int(token_id), logprobs.get(index)) if is_sound else Sampled(error=NOT_FINITE)
        for index, (token_id, is_sound) in enumerate(zip(*chosen, strict=True))
    ]


class Edit(NamedTuple):
    """One row's change of some logits: multiplied or divided by `factor` by their sign, then shifted."""

    row: int
    token_ids: np.ndarray
    factor: float
    shift: np.ndarray | float


def _edited(raw: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    edits = [edit for index, row in enumerate(rows) for edit in _edits(index, row)]
    if not edits:
        return raw
    logits = raw.clone()
    for edit in edits:
        token_ids = torch.as_tensor(edit.token_ids.astype(np.int64), device=raw.device)
        shift = torch.as_tensor(edit.shift, dtype=torch.float32, device=raw.device)
        old = logits[edit.row, token_ids]
        logits[edit.row, token_ids] = torch.where(old > 0, old / edit.factor, old * edit.factor) + shift
    return logits


def _edits(index: int, row: SampleRow) -> Iterator[Edit]:
    params = row.params
    if params.logit_bias:
        yield Edit(index, np.fromiter(params.logit_bias, np.int64), 1.0, np.array([*params.logit_bias.values()]))
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.concatenate([row.prompt_token_ids, row.output_token_ids]))
        yield Edit(index, seen, params.repetition_penalty, 0.0)
    if params.presence_penalty or params.frequency_penalty:
        drawn, counts = np.unique(row.output_token_ids, return_counts=True)
        yield Edit(index, drawn, 1.0, -params.presence_penalty - params.frequency_penalty * counts)
    if row.banned_token_ids:
        yield Edit(index, np.array(row.banned_token_ids), 1.0, -np.inf)


class Settings(NamedTuple):
    """The drawing rows' parameters, as float64 columns [S, 1] on the device."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor

    @classmethod
    def of(cls, rows: Sequence[SampleRow], device: torch.device) -> "Settings":
        draws = uniforms([row.seed for row in rows], [row.position for row in rows])
        table = [
            [max(own.temperature, COLDEST), own.top_k or np.inf, own.top_p, own.min_p, draw]
            for own, draw in zip((row.params for row in rows), draws.tolist(), strict=True)
        ]
        columns = torch.tensor(table, dtype=torch.float64, device=device).unsqueeze(-1)  # [S, 5, 1]
        return cls(*columns.unbind(1))

    def take(self, rows: Tensor) -> "Settings":
        return Settings(*(column.index_select(0, rows) for column in self))

    @property
    def are_filtering(self) -> Tensor:
        return (self.top_k < torch.inf) | (self.top_p < 1) | (self.min_p > 0)


class Candidates(NamedTuple):
    """The likeliest tokens of each row in the CDF's order, and their probabilities among the whole vocabulary."""

    ids: Tensor  # [S, C]
    probabilities: Tensor  # [S, C] float64
    vocab_size: int

    @property
    def are_complete(self) -> bool:
        return self.ids.shape[1] == self.vocab_size


def _draw(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    settings = Settings.of(rows, logits.device)
    num_candidates, *larger = (*NUM_CANDIDATES, logits.shape[1])
    drawn, is_decided = _draw_from(_likeliest(logits, settings, num_candidates), settings)
    for num in larger:
        undecided = (~is_decided).nonzero()[:, 0]
        if len(undecided) == 0:
            break
        rest = settings.take(undecided)
        token_ids, suffices = _draw_from(_likeliest(logits.index_select(0, undecided), rest, num), rest)
        drawn[undecided], is_decided[undecided] = token_ids, suffices
    return drawn


def _likeliest(logits: Tensor, settings: Settings, num: int) -> Candidates:
    """In descending order, equal logits by ascending id. Which of those equal to the last are in is left open."""
    vocab_size = logits.shape[1]
    if num < vocab_size:
        near_top = logits.topk(num, dim=-1, sorted=False).indices.sort(-1).values
        values, order = torch.sort(logits.gather(1, near_top), dim=-1, descending=True, stable=True)
        ids = near_top.gather(1, order)
    else:
        values, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
    peak = values[:, :1]  # everything is relative to it: near the peak, where it counts, float32 then loses nothing
    inverse = settings.temperature.reciprocal().float()
    total = (logits - peak).mul_(inverse).exp_().sum(-1, keepdim=True).double()  # in place: [S, V] is megabytes
    probabilities = ((values.double() - peak.double()) / settings.temperature).exp() / total
    return Candidates(ids, probabilities, vocab_size)


def _draw_from(candidates: Candidates, settings: Settings) -> tuple[Tensor, Tensor]:
    """Token ids [S], and whether the candidates sufficed to decide them [S]."""
    probabilities = candidates.probabilities
    up_to = probabilities.cumsum(-1)
    by_rank = torch.arange(probabilities.shape[1], device=probabilities.device) < settings.top_k
    in_top_k = torch.where(settings.top_k < candidates.vocab_size, (probabilities * by_rank).sum(-1, keepdim=True), 1.0)
    kept = by_rank & (up_to - probabilities < settings.top_p * in_top_k)  # top_p is a share of what top_k kept
    kept &= probabilities >= settings.min_p * probabilities[:, :1]
    kept[:, 0] = True
    mass = torch.where(kept.all(-1, keepdim=True), in_top_k, (probabilities * kept).sum(-1, keepdim=True))
    is_beyond = kept & (up_to > settings.uniform * mass)
    last_kept = kept.sum(-1) - 1  # rounding may leave the last sum a hair short of the mass
    rank = torch.where(is_beyond.any(-1), is_beyond.int().argmax(-1), last_kept)[:, None]
    is_decided = _is_decided(candidates, settings, kept, rank)
    return candidates.ids.gather(1, rank)[:, 0], is_decided


def _is_decided(candidates: Candidates, settings: Settings, kept: Tensor, rank: Tensor) -> Tensor:
    """The filters ended within the candidates, and the draw before the last one and before any token equal to it."""
    if candidates.are_complete:
        return torch.ones_like(rank[:, 0], dtype=torch.bool)
    probabilities = candidates.probabilities
    before_boundary = probabilities.gather(1, rank) > probabilities[:, -1:]
    filters_ended = ~settings.are_filtering | ~kept.all(-1, keepdim=True)
    knows_top_k = (settings.top_k <= probabilities.shape[1]) | (settings.top_k >= candidates.vocab_size)
    return (before_boundary & filters_ended & knows_top_k)[:, 0]


def _logprobs(raw: Tensor, token_ids: Tensor, rows: Sequence[SampleRow]) -> dict[int, Logprobs]:
    """Of the distribution as the model gave it, before any edit; only for the rows that asked."""
    asking = [(index, row.params.logprobs) for index, row in enumerate(rows) if row.params.logprobs is not None]
    if not asking:
        return {}
    where = torch.as_tensor([index for index, _ in asking], device=raw.device)
    logits = raw.index_select(0, where)
    total = logits.logsumexp(-1, keepdim=True)
    own = token_ids.index_select(0, where)[:, None]
    chosen = (logits.gather(1, own) - total)[:, 0].tolist()
    values, ids = logits.topk(min(max(num for _, num in asking), logits.shape[1]), dim=-1)
    tops = zip(ids.tolist(), (values - total).tolist(), strict=True)
    return {
        index: Logprobs(logprob, tuple(zip(top_ids[:num], top_values[:num], strict=True)))
        for (index, num), logprob, (top_ids, top_values) in zip(asking, chosen, tops, strict=True)
    }
