"""Balances activations and weights before both are rounded (after SmoothQuant, arXiv 2211.10438). Knows no kernel."""

import torch
from torch import Tensor

STRENGTH = 0.4  # how much of the unevenness of activations goes to the weights; 0.5 and 0.6 measured no better
SMALLEST = 1e-4  # of the largest: an input that was never active in the trial must not get all the levels


def balance(weight: Tensor, largest: Tensor) -> Tensor:
    """Factors [K] for the activations, powers of two, of which the weights take the inverse.

    `weight` [N, K]; `largest` [K]: the largest activation seen of each input. A few inputs of a language model are a
    hundred times larger than the others, and would leave them a few of a row's 256 levels.
    """
    activations = largest.clamp_min(SMALLEST * float(largest.max()) or SMALLEST)
    weights = weight.float().abs().amax(0)
    weights = weights.clamp_min(SMALLEST * float(weights.max()) or SMALLEST)
    logs = STRENGTH * activations.log2() - (1 - STRENGTH) * weights.log2()
    return torch.exp2(torch.round(logs.mean() - logs))
