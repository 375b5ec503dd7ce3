"""What the device allows: copy bandwidth and GEMM rate, measured first, and the shortest decode step under these.

The bound of a step is the sum over operations of max(bytes / bandwidth, FLOP / rate): every linear by itself, then the
keys and values of all contexts. Norms, draws and the host count nothing.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.gpu.clock import wait_for


class Machine(NamedTuple):
    bytes_per_s: float  # read and written, together
    flop_per_s: float


class Operation(NamedTuple):
    num_bytes: float
    flop: float

    def seconds(self, machine: Machine) -> float:
        return max(self.num_bytes / machine.bytes_per_s, self.flop / machine.flop_per_s)


def measure(device: torch.device, dtype: torch.dtype, *, is_small: bool) -> Machine:
    return Machine(
        _copy_rate(device, 1 << (20 if is_small else 31)), _gemm_rate(device, dtype, 64 if is_small else 8192)
    )


def _copy_rate(device: torch.device, num_bytes: int) -> float:
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / _seconds(lambda: target.copy_(source), device)


def _gemm_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: left @ right, device)


def _seconds(work: Callable[[], object], device: torch.device, *, times: int = 20) -> float:
    """Of one, over several that run back to back, after as many to warm up."""
    for _ in range(times):
        work()
    wait_for(device)
    started_s = time.perf_counter()
    for _ in range(times):
        work()
    wait_for(device)
    return (time.perf_counter() - started_s) / times


def decode_bound_s(model: PreTrainedModel, machine: Machine, *, batch: int, context: int) -> float:
    """One step that gives each of `batch` rows of `context` tokens one more."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    operations = [_linear(linear, batch) for linear in linears]
    output: nn.Module | None = cast("Any", model).get_output_embeddings()
    if output is None:
        operations.append(_linear(cast("nn.Linear", model.get_input_embeddings()), batch))
    return sum(operation.seconds(machine) for operation in [*operations, _attention(model, batch, context)])


def _linear(module: nn.Linear, batch: int) -> Operation:
    weights = module.weight.numel()
    return Operation(weights * module.weight.element_size(), 2 * batch * weights)


def _attention(model: PreTrainedModel, batch: int, context: int) -> Operation:
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    stored = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * batch * context
    flop = 4 * config.num_hidden_layers * config.num_attention_heads * head_dim * batch * context
    return Operation(stored * model.dtype.itemsize, flop)
