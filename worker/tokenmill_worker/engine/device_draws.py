"""Draws whose result stays on the device until somebody asks: for steps that are launched. Knows no model, no batch.

What `draw` does never waits for the device, so a CUDA graph may hold it. The price: it looks at few candidates of a
row, and a row whose draw these do not decide is drawn anew when it is read; what was launched with the wrong token is
told by `Draws.redrawn`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenmill_worker.engine import sampler
from tokenmill_worker.engine.api import Logprobs
from tokenmill_worker.engine.batch import Draws, Launch, SampleRow, Samples
from tokenmill_worker.engine.sampler import NOT_FINITE, Places, Settings
from tokenmill_worker.engine.transfer import Arriving, to_device

NUM_CANDIDATES = 1024  # enough for all but the flattest distributions; a full sort of 128,000 takes far longer


class Drawn(NamedTuple):
    """On the device, [S] each."""

    token_ids: Tensor
    is_sound: Tensor
    is_decided: Tensor

    def stacked(self) -> Tensor:
        """[3, S] int64."""
        return torch.stack([self.token_ids, self.is_sound.long(), self.is_decided.long()])


def draw(logits: Tensor, settings: Settings | None, *, num_candidates: int = NUM_CANDIDATES) -> Drawn:
    """logits [S, V]. `settings` None: all rows are greedy. NaN and infinity win, so the peak shows them."""
    peaks, likeliest = logits.max(-1)
    is_sound = peaks.isfinite()
    if settings is None:
        return Drawn(likeliest, is_sound, torch.ones_like(is_sound))
    is_greedy = settings.temperature[:, 0] == 0
    warm = settings._replace(temperature=settings.temperature.clamp(min=sampler.COLDEST))
    candidates = sampler._likeliest(logits.float(), warm, min(num_candidates, logits.shape[1]))
    token_ids, is_decided = sampler._draw_from(candidates, warm)
    return Drawn(torch.where(is_greedy, likeliest, token_ids), is_sound, is_decided | is_greedy)


@torch.inference_mode()
def launch(logits: Tensor, rows: Sequence[SampleRow]) -> "Drawing":
    """logits [S, V], one row per sample, on any device; nothing is waited for."""
    samples = Samples.of(rows)
    drawn, others = draw(logits, None), np.flatnonzero(~(samples.is_plain & samples.is_greedy))
    if not len(others):
        return Drawing(samples, drawn.token_ids, Arriving([drawn.stacked()]))
    places = to_device(others, logits.device)
    edited = sampler._edited(logits.index_select(0, places).float(), samples, others)
    table = sampler.settings_table(samples, others)
    own = draw(edited, Settings.on_device(table, logits.device))
    for part, others_part in zip(drawn, own, strict=True):
        part.index_copy_(0, places, others_part)
    asking = _asking(samples, others)
    told = _told(logits, drawn.token_ids, asking, samples)
    arriving = Arriving([drawn.stacked(), *told])
    return Drawing(samples, drawn.token_ids, arriving, Again(others, edited), logits if len(asking) else None, asking)


def _asking(samples: Samples, others: Places) -> list[int]:
    """Those that want logprobs; a plain row does not."""
    edited = others[~samples.is_plain[others]].tolist()
    return [index for index in edited if samples[index].params.logprobs is not None]


def _told(logits: Tensor, token_ids: Tensor, asking: list[int], samples: Samples) -> tuple[Tensor, ...]:
    if not asking:
        return ()
    where = to_device(np.array(asking), logits.device)
    most = max(samples[index].params.logprobs or 0 for index in asking)
    return sampler.told_logprobs(logits.index_select(0, where), token_ids.index_select(0, where), most)


class Again(NamedTuple):
    """What an exact draw needs: the samples at `places` have these logits [len(places), V], edited."""

    places: Places
    logits: Tensor


@dataclass(frozen=True, slots=True)
class Drawing(Launch):
    """A launched step's draws. `token_ids` [S] are for the next step, on the device."""

    samples: Samples
    token_ids: Tensor
    arriving: Arriving
    again: Again | None = None
    raw: Tensor | None = None  # [S, V] where logprobs are asked for
    asking: Sequence[int] = ()

    @torch.inference_mode()
    def read(self) -> Draws:
        stacked, *told = self.arriving.wait()
        token_ids = stacked[0].copy()
        is_sound, is_decided = stacked[1].astype(np.bool_), stacked[2].astype(np.bool_)
        undecided = np.flatnonzero(is_sound & ~is_decided)
        changed = self._draw_again(token_ids, undecided) if len(undecided) else frozenset[int]()
        logprobs = self._logprobs(token_ids, told, is_sound, changed)
        errors = dict.fromkeys(np.flatnonzero(~is_sound).tolist(), NOT_FINITE)
        return Draws(token_ids, logprobs, errors, changed)

    def _draw_again(self, token_ids: np.ndarray, undecided: Places) -> frozenset[int]:
        """From all candidates, in place. Returns where that made a difference."""
        assert self.again is not None, "a greedy row is always decided"
        within = np.searchsorted(self.again.places, undecided)
        logits = self.again.logits
        own = logits.index_select(0, to_device(within, logits.device)).float()
        settings = Settings.of(self.samples, undecided, logits.device)
        exact = sampler._draw(own, settings).cpu().numpy()
        changed = undecided[exact != token_ids[undecided]]
        token_ids[undecided] = exact
        return frozenset(changed.tolist())

    def _logprobs(
        self, token_ids: np.ndarray, told: list[np.ndarray], is_sound: np.ndarray, changed: frozenset[int]
    ) -> dict[int, Logprobs]:
        if self.raw is None:
            return {}
        numbers = {index: self.samples[index].params.logprobs for index in self.asking if is_sound[index]}
        known = sampler.assembled_logprobs(self.asking, numbers, *told)
        anew = {index: num for index, num in numbers.items() if index in changed}
        return known | sampler._logprobs(self.raw, token_ids, anew)
