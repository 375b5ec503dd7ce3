"""Single modules replaced in place, for layers whose structure is not known: linears and norms. Knows no layer."""

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tokenmill_worker.engine.surgery.linear import Linear, is_plain_linear, joined
from tokenmill_worker.engine.surgery.norm import RmsNorm, rms_norm_of
from tokenmill_worker.engine.surgery.recognition import Materials
from tokenmill_worker.engine.surgery.verify import COARSE, EXACT, DifferentResultError, check


class Replaced(NamedTuple):
    linears: int = 0
    norms: int = 0

    def plus(self, other: "Replaced") -> "Replaced":
        return Replaced(self.linears + other.linears, self.norms + other.norms)


class FastModule(nn.Module):
    """A function of [M, K] in the place of a module that takes [..., K]."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        result = self._function(x.reshape(-1, x.shape[-1]).contiguous())
        return result.view(*x.shape[:-1], result.shape[-1])  # not -1: a step may want no logits at all


def replace_pieces(root: nn.Module, materials: Materials, but: Collection[int] = ()) -> Replaced:
    """Every linear and every root mean square norm below `root`, each compared with its original first.

    `but`: ids of modules whose children stay.
    """
    replaced = Replaced()
    for parent in [module for module in root.modules() if id(module) not in but]:
        for name, child in list(parent.named_children()):
            made = _made(child, materials)
            if made is not None:
                parent.register_module(name, FastModule(made))
                replaced = replaced.plus(Replaced(int(not isinstance(made, RmsNorm)), int(isinstance(made, RmsNorm))))
    return replaced


def _made(module: nn.Module, materials: Materials) -> Linear | RmsNorm | None:
    if not is_plain_linear(module):
        return rms_norm_of(module, materials.ops)
    made = fast_linear(module, materials)  # type: ignore[arg-type]  # is_plain_linear
    if made is not None:
        module._parameters.clear()
    return made


def fast_linear(module: nn.Linear, materials: Materials) -> Linear | None:
    """None where it does not compute the same."""
    made = joined([module], materials.linear)
    weight = module.weight
    x = torch.randn(3, module.in_features, generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        check(made(x), module(x), EXACT if weight.dtype == torch.float32 else COARSE)
    except DifferentResultError:
        return None
    return made
