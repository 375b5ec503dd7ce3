"""int8 weights on CPU: what takes the place of tier 1's linears, once they are known to be right. Knows no model."""

from tokenmill_worker.engine.quantization.quantizer import Quantizer
from tokenmill_worker.engine.quantization.refusal import refuse_if_impossible

__all__ = ["Quantizer", "refuse_if_impossible"]
