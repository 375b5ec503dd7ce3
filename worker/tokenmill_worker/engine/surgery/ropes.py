"""A step's rotations: what a model's rotary gives, from a table where it depends on positions alone. Knows no layer."""

from collections.abc import Callable

from torch import Tensor, arange

from tokenmill_worker.engine.surgery.layer import Rope
from tokenmill_worker.engine.surgery.recording import rope_of

Rotary = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (any tensor of the dtype, positions [1, T]) -> cos, sin
Ropes = Callable[[Tensor, Tensor], Rope]  # (any tensor of the dtype, positions [T]) -> [T, R] each

STATIC = ("default", "linear", "llama3", "yarn")  # the others look at the longest position of a step
_FIRST_POSITIONS, _MOST_POSITIONS = 2048, 32768  # in a table; a dozen operations are little beside longer contexts


def ropes_of(rotary: Rotary, *, are_half: bool) -> Ropes:
    """`are_half`: what the rotary gives, see recording.py."""

    def computed(x: Tensor, positions: Tensor) -> Rope:
        return rope_of(rotary(x, positions[None]), x.dtype, are_half=are_half)

    return RopeTable(computed) if getattr(rotary, "rope_type", None) in STATIC else computed


class RopeTable:
    """Of all positions up to the furthest that was asked for: two small operations a step in place of a dozen.

    On another device than the CPU everything is computed, because asking for the furthest position would wait for it.
    """

    def __init__(self, computed: Ropes) -> None:
        self._computed = computed
        self._table: Rope | None = None

    def __call__(self, x: Tensor, positions: Tensor) -> Rope:
        if x.device.type != "cpu" or not len(positions):
            return self._computed(x, positions)
        furthest = int(positions.numpy().max())
        if furthest >= _MOST_POSITIONS:
            return self._computed(x, positions)
        cos, sin = self._reaching(furthest, x)
        return Rope(cos.index_select(0, positions), sin.index_select(0, positions))

    def _reaching(self, position: int, x: Tensor) -> Rope:
        table = self._table
        if table is None or len(table.cos) <= position or table.cos.dtype != x.dtype:
            size = max(_FIRST_POSITIONS, 1 << position.bit_length())
            table = self._table = self._computed(x, arange(size))
        return table
