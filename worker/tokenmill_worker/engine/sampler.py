"""Draws one token per row from logits, by its request's parameters and one uniform number. Knows no model, no batch.

The order of operations: logit_bias, penalties, bans (min_tokens), temperature, top_k, top_p, min_p, inverse CDF. The
CDF runs over tokens by descending probability, equal ones by ascending id, and the uniform depends on (seed, position)
alone: so a draw does not depend on who else is in the batch, on a retry or on a restart.

Every filter keeps a prefix of that order. So rows are sorted only as far as their draw needs: the likeliest few
first, the whole vocabulary only for the rows whose draw is not decided within them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenmill_worker.engine.answers import Answers
from tokenmill_worker.engine.api import Logprobs, RowError
from tokenmill_worker.engine.batch import Bools, Draws, Floats, Ids, SampleRow, Samples
from tokenmill_worker.engine.transfer import to_device
from tokenmill_worker.engine.uniform import uniforms

NUM_CANDIDATES = (256, 4096)  # 0.2 and 1 ms a row for a vocabulary of 49,152 on one core; a full sort takes 4.5 ms
COLDEST = 1e-30  # a lower temperature cannot differ from greedy, and would be 0 in float32

Places = NDArray[np.intp]  # indexes of samples

NOT_FINITE = RowError("non_finite_logits", "the model computed NaN or infinite logits for this row")


@torch.inference_mode()
def sample(logits: Tensor, rows: Sequence[SampleRow]) -> Draws:
    """logits [S, V], one row per sample. A row of NaN or infinity gets an error; its neighbours do not notice.

    Most rows are plain and greedy: their arg-max is all there is to do. The others are taken aside.
    """
    if not rows:
        return Draws(np.zeros(0, dtype=np.int64))
    samples = Samples.of(rows)
    token_ids, is_sound = _arg_max(logits)
    others = np.flatnonzero(~(samples.is_plain & samples.is_greedy))
    logprobs: dict[int, Logprobs] = {}
    if len(others):
        raw = logits.index_select(0, torch.as_tensor(others, device=logits.device)).float()
        edited = _edited(raw, samples, others)
        token_ids[others], is_sound[others] = _chosen(edited, samples, others)
        asking = others[~samples.is_plain[others] & is_sound[others]]
        logprobs = _logprobs(logits, token_ids, {index: samples[index].params.logprobs for index in asking.tolist()})
    errors = dict.fromkeys(np.flatnonzero(~is_sound).tolist(), NOT_FINITE)
    return Draws(token_ids, logprobs, errors)


def sample_answers(answers: Answers, rows: Sequence[SampleRow]) -> Draws:
    """The same where of some plain and greedy rows the token is known already, and sound."""
    if answers.logits is None:
        return Draws(answers.token_ids)
    samples, own = Samples.of(rows), answers.rows
    if len(own) == len(samples):
        return sample(answers.logits, samples)
    drawn = sample(answers.logits, samples.take(own))
    token_ids = answers.token_ids.copy()
    token_ids[own] = drawn.token_ids
    logprobs = {int(own[index]): told for index, told in drawn.logprobs.items()}
    return Draws(token_ids, logprobs, {int(own[index]): error for index, error in drawn.errors.items()})


def _chosen(logits: Tensor, samples: Samples, where: Places) -> tuple[Ids, Bools]:
    """Of the samples at `where`, whose edited logits these are: the tokens, and whether the logits were sound."""
    token_ids, is_sound = _arg_max(logits)
    drawing = np.flatnonzero(~samples.is_greedy[where])
    if len(drawing):
        own = logits if len(drawing) == len(where) else logits[torch.as_tensor(drawing, device=logits.device)]
        token_ids[drawing] = _draw(own, Settings.of(samples, where[drawing], logits.device)).cpu().numpy()
    return token_ids, is_sound


def _arg_max(logits: Tensor) -> tuple[Ids, Bools]:
    """The likeliest tokens [S], of equal ones the lowest, and whether nothing in a row is NaN or above all numbers.

    There is no look at the whole row for that: both win, so the peak shows them. One transfer to the host.
    """
    token_ids = _cpu_arg_max(logits) if logits.device.type == "cpu" else logits.max(-1).indices
    peaks = logits.gather(1, token_ids.clamp(min=0)[:, None])[:, 0]
    is_sound = peaks.isfinite() & (token_ids >= 0)
    chosen = torch.stack([token_ids, is_sound.long()]).cpu().numpy()
    return chosen[0], chosen[1].astype(np.bool_)


def _cpu_arg_max(logits: Tensor) -> Tensor:
    """As tokenmill_cpu::argmax has it, which says -1 of a row with a NaN; without that library, numpy's is the fastest:
    0.2 ms for 64 rows of 49,152 in float32, torch's 2.6 (one core of a 2-core Zen5)."""
    if logits.dtype in (torch.float32, torch.bfloat16) and hasattr(torch.ops.tokenmill_cpu, "argmax"):
        token_ids: Tensor = torch.ops.tokenmill_cpu.argmax(logits.contiguous())
        return token_ids
    return torch.from_numpy(logits.float().numpy().argmax(-1))


class Edit(NamedTuple):
    """One row's change of some logits: multiplied or divided by `factor` by their sign, then shifted."""

    row: int
    token_ids: np.ndarray
    factor: float
    shift: np.ndarray | float


def _edited(raw: Tensor, samples: Samples, where: Places) -> Tensor:
    """`raw` are the logits of the samples at `where`; those that are plain need no look."""
    edited = np.flatnonzero(~samples.is_plain[where]).tolist()
    edits = [edit for index in edited for edit in _edits(index, samples[where[index]])]
    if not edits:
        return raw
    logits = raw.clone()
    for edit in edits:
        token_ids = to_device(edit.token_ids.astype(np.int64), raw.device)
        shift = to_device(np.asarray(edit.shift, dtype=np.float32), raw.device)
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
    def of(cls, samples: Samples, where: Places, device: torch.device) -> "Settings":
        table = settings_table(samples, where)
        table[:, 0] = np.maximum(table[:, 0], COLDEST)
        return cls.on_device(table, device)

    @classmethod
    def on_device(cls, table: Floats, device: torch.device) -> "Settings":
        """Of the columns of `settings_table`."""
        return cls(*to_device(table, device).unsqueeze(-1).unbind(1))

    def take(self, rows: Tensor) -> "Settings":
        return Settings(*(column.index_select(0, rows) for column in self))

    @property
    def are_filtering(self) -> Tensor:
        return (self.top_k < torch.inf) | (self.top_p < 1) | (self.min_p > 0)


def settings_table(samples: Samples, where: Places) -> Floats:
    """[S, 5]: what the parameters say, and the uniforms."""
    table: Floats = np.column_stack([samples.settings[where], uniforms(samples.seeds[where], samples.positions[where])])
    return table


class Candidates(NamedTuple):
    """The likeliest tokens of each row in the CDF's order, and their probabilities among the whole vocabulary."""

    ids: Tensor  # [S, C]
    probabilities: Tensor  # [S, C] float64
    vocab_size: int

    @property
    def are_complete(self) -> bool:
        return self.ids.shape[1] == self.vocab_size


def _draw(logits: Tensor, settings: Settings) -> Tensor:
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


def _logprobs(raw: Tensor, token_ids: Ids, asked: Mapping[int, int | None]) -> dict[int, Logprobs]:
    """Of the distribution as the model gave it, before any edit. `asked`: how many of the likeliest, by row."""
    asking = [(index, num) for index, num in asked.items() if num is not None]
    if not asking:
        return {}
    where = [index for index, _ in asking]
    logits = raw.index_select(0, torch.as_tensor(where, device=raw.device))
    own = torch.as_tensor(token_ids[where], device=raw.device)
    told = told_logprobs(logits, own, max(num for _, num in asking))
    return assembled_logprobs(where, dict(asking), *(part.cpu().numpy() for part in told))


def told_logprobs(raw: Tensor, token_ids: Tensor, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """raw [S, V], token_ids [S] -> the tokens' logprobs [S], the `num` likeliest tokens and theirs [S, num]."""
    logits = raw.float()
    total = logits.logsumexp(-1, keepdim=True)
    values, ids = logits.topk(min(num, logits.shape[1]), dim=-1)
    return (logits.gather(1, token_ids[:, None]) - total)[:, 0], ids, values - total


def assembled_logprobs(
    where: Sequence[int], asked: Mapping[int, int | None], chosen: np.ndarray, ids: np.ndarray, values: np.ndarray
) -> dict[int, Logprobs]:
    """Of the samples at `where`, for those in `asked`."""
    columns = zip(where, chosen.tolist(), ids.tolist(), values.tolist(), strict=True)
    return {
        index: Logprobs(logprob, tuple(zip(top_ids[: asked[index]], top_values[: asked[index]], strict=True)))
        for index, logprob, top_ids, top_values in columns
        if index in asked
    }
