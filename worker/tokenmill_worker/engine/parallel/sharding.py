"""A checkpoint shared out by transformers' own plan, and whether that gave the same model. Knows no batch."""

import math
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from tokenmill_worker.engine.api import ModelError

KEY_PROJECTIONS = ("k_proj", "qkv_proj", "query_key_value")  # what makes keys, fused with queries or not


def placement(config: PretrainedConfig, size: int) -> dict[str, Any]:
    """The arguments of from_pretrained that make each rank read its shard. Raises ModelError when it cannot work."""
    text = config.get_text_config(decoder=True)
    plan = getattr(text, "base_model_tp_plan", None)
    if not plan:
        raise ModelError(
            f"transformers has no tensor parallel plan for {text.model_type} models, so it cannot be spread over "
            f"{size} processes"
        )
    if any(name.rpartition(".")[2] in KEY_PROJECTIONS and style == "colwise" for name, style in plan.items()):
        _refuse_uneven_heads(text, size)
    return {"distributed_config": DistributedConfig(tp_size=size)}


def _refuse_uneven_heads(text: PretrainedConfig, size: int) -> None:
    queries = text.num_attention_heads
    keys = getattr(text, "num_key_value_heads", None) or queries
    if (shared := math.gcd(queries, keys)) % size:
        sizes = ", ".join(str(n) for n in range(1, shared + 1) if shared % n == 0)
        raise ModelError(
            f"{queries} query heads and {keys} key/value heads cannot be shared out evenly among {size} processes: "
            f"set tensor_parallel_size to one of {sizes}"
        )


def whole(parameter: Tensor) -> Tensor:
    """All of a weight, on every rank. A collective for one that is sharded."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def local(parameter: Tensor) -> Tensor:
    """This rank's part of a weight."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def num_weights(model: PreTrainedModel) -> int:
    """Of the whole model, on every rank."""
    return sum(parameter.numel() for parameter in model.parameters())


def share(model: PreTrainedModel) -> float:
    """The part of the weights of which each rank has only its own slice; every rank has all of the others."""
    sliced = sum(parameter.numel() for parameter in model.parameters() if _is_sliced(parameter))
    return sliced / max(num_weights(model), 1)


def _is_sliced(parameter: Tensor) -> bool:
    return isinstance(parameter, DTensor) and not all(place.is_replicate() for place in parameter.placements)
