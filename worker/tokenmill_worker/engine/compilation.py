"""torch.compile for each decoder layer by itself: one small graph for all layers of a kind. Knows no model class."""

import logging

from torch import nn

from tokenmill_worker.engine.adapter import Adapter

_logger = logging.getLogger(__name__)


def compile_layers(adapter: Adapter, *, backend: str = "inductor") -> int:
    """How many were told to compile, which they do when they first run. Attention stays one opaque operation."""
    if adapter.program is not None:
        _logger.warning("compile_layers does nothing in tier 1, which has no modules left to compile; set tier = 0")
        return 0
    layers = _decoder_layers(adapter)
    for layer in layers:
        layer.compile(backend=backend, dynamic=True)
    return len(layers)


def _decoder_layers(adapter: Adapter) -> list[nn.Module]:
    """What stands in one list of the model and contains one attention module each."""
    attending = {id(module) for module in adapter.attention_modules}
    lists = [module for module in adapter.model.modules() if isinstance(module, nn.ModuleList)]
    return [
        layer for blocks in lists for layer in blocks if sum(id(part) in attending for part in layer.modules()) == 1
    ]
