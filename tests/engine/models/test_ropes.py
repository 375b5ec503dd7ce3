"""A step's rotations from a table are those that the model's own rotary computes."""

import pytest
import torch
from tokenmill_worker.engine.surgery.ropes import RopeTable, ropes_of
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

PARAMETERS: dict[str, dict[str, float | str]] = {
    "default": {"rope_theta": 10000.0},
    "linear": {"rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    "dynamic": {"rope_theta": 10000.0, "factor": 4.0},
}


def rotary(kind: str) -> LlamaRotaryEmbedding:
    parameters = {"rope_type": kind, **PARAMETERS[kind]}
    return LlamaRotaryEmbedding(LlamaConfig(head_dim=64, max_position_embeddings=4096, rope_parameters=parameters))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
def test_a_table_gives_what_is_computed_for_each_step(kind: str, dtype: torch.dtype) -> None:
    own, x = rotary(kind), torch.zeros(1, dtype=dtype)
    ropes = ropes_of(own, are_half=False)
    assert isinstance(ropes, RopeTable)
    steps: list[Tensor] = [
        torch.tensor([0, 1, 2, 7]),
        torch.tensor([2047]),
        torch.tensor([9, 5000, 3]),
        torch.arange(70),
    ]
    for positions in [*steps, torch.tensor([40_000, 1]), torch.zeros(0, dtype=torch.int64)]:
        cos, sin = own(x, positions[None])
        assert torch.equal(ropes(x, positions).cos, cos[0])
        assert torch.equal(ropes(x, positions).sin, sin[0])


def test_rotations_that_depend_on_the_longest_position_are_computed_each_time() -> None:
    assert not isinstance(ropes_of(rotary("dynamic"), are_half=False), RopeTable)
