"""What the machine allows: weight bandwidth and GEMM rate, through prepacked linears of a model's own shapes.

All linears of the model are laid out as a step would find them (every layer's weights in memory of their own, q/k/v and
gate/up in one each), and run over M tokens with nothing between them. 512 tokens tell the rate; the bandwidth is what a
plain read by all threads reaches, or those linears over one token where they are faster. The bound of a step over M
tokens is the sum over linears of max(bytes / bandwidth, FLOP / rate): no attention, no norms, no host work.
`linears_ms` is what those same linears take at M itself, which no shape of work reaches at every M.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # linears that read the same input: one GEMM
PEAK_TOKENS = 512


class Shape(NamedTuple):
    num_outputs: int
    num_inputs: int

    @property
    def num_weights(self) -> int:
        return self.num_outputs * self.num_inputs


def linear_shapes(folder: Path) -> list[Shape]:
    """Of every linear of the model in this folder, in order, those of one group as one; no weight is loaded."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))  # type: ignore[no-untyped-call]  # transformers has no types here
    return grouped({name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)})


def grouped(linears: dict[str, nn.Linear]) -> list[Shape]:
    outputs: dict[str, int] = {}
    inputs: dict[str, int] = {}
    for name, linear in linears.items():
        parent, _, own = name.rpartition(".")
        group = next((group[0] for group in GROUPS if own in group), own)
        key = f"{parent}.{group}"
        outputs[key] = outputs.get(key, 0) + linear.out_features
        inputs[key] = linear.in_features
    return [Shape(outputs[key], inputs[key]) for key in outputs]


@dataclass(frozen=True)
class Roofline:
    """Figures of one machine and one model in one dtype."""

    shapes: Sequence[Shape]
    dtype: torch.dtype

    @cached_property
    def linears(self) -> list[tuple[Shape, Tensor]]:
        return [(shape, _packed(torch.randn(shape, dtype=self.dtype))) for shape in self.shapes]

    @property
    def num_weights(self) -> int:
        return sum(shape.num_weights for shape in self.shapes)

    @cached_property
    def bytes_per_s(self) -> float:
        return max(self.num_weights * self.dtype.itemsize / self.linears_s(1), self.read_bytes_per_s)

    @cached_property
    def flop_per_s(self) -> float:
        return 2 * PEAK_TOKENS * self.num_weights / self.linears_s(PEAK_TOKENS)

    @cached_property
    def read_bytes_per_s(self) -> float:
        """Plain reading of memory by all threads; written before, since unwritten pages are all one page of zeros."""
        numbers = torch.ones(1 << 26)
        return numbers.numel() * numbers.itemsize / _median_s(lambda: numbers.sum(), 7)

    def bound_s(self, num_tokens: int) -> float:
        bytes_s = [shape.num_weights * self.dtype.itemsize / self.bytes_per_s for shape in self.shapes]
        flop_s = [2 * num_tokens * shape.num_weights / self.flop_per_s for shape in self.shapes]
        return sum(map(max, bytes_s, flop_s))

    @torch.inference_mode()
    def linears_s(self, num_tokens: int) -> float:
        """All linears once, at so many tokens."""
        inputs = {shape: torch.randn(num_tokens, shape.num_inputs, dtype=self.dtype) for shape, _ in self.linears}

        def run() -> None:
            for shape, weight in self.linears:
                _linear(inputs[shape], weight, shape)

        return _median_s(run, 5)

    def figures(self) -> dict[str, float]:
        return {
            "weight_gb_per_s": round(self.bytes_per_s / 1e9, 2),
            "gemm_gflop_per_s": round(self.flop_per_s / 1e9, 1),
            "read_gb_per_s": round(self.read_bytes_per_s / 1e9, 2),
            "balance_rows": round(self.flop_per_s / self.bytes_per_s * self.dtype.itemsize / 2, 1),
        }


def _packed(weight: Tensor) -> Tensor:
    """As oneDNN likes it best; as it is where oneDNN has no such form for this dtype."""
    if weight.dtype is torch.float32:
        return weight
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def _linear(tokens: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    if not weight.is_mkldnn:
        return nn.functional.linear(tokens, weight)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, weight, None, "none", [], "")
    assert result.shape[-1] == shape.num_outputs
    return result


def _median_s(run: Callable[[], object], num: int) -> float:
    """After two warm-ups."""
    seconds = []
    for _ in range(num + 2):
        started_s = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started_s)
    return median(seconds[2:])
