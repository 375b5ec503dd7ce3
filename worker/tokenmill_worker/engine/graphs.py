"""Decode steps as CUDA graphs: one for each bucket of rows, captured when it is first needed. Knows no batch."""

import logging
from collections.abc import Callable
from typing import Protocol

import torch

_logger = logging.getLogger(__name__)

WARM_UPS = 2  # kernels are compiled and workspaces taken before anything is captured


class Graph(Protocol):
    def replay(self) -> None: ...


Capture = Callable[[Callable[[], None]], Graph]


def bucket_for(num_rows: int) -> int:
    """1, 2, 4, 8, then by 8 to 256, then by 32: padding rows cost little, and so do few graphs."""
    if num_rows <= 8:
        return 1 << (num_rows - 1).bit_length()
    grain = 8 if num_rows <= 256 else 32
    return -(-num_rows // grain) * grain


class CudaCapture:
    """Captures into one pool of memory: only one graph runs at a time, so they share what they use in between."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Graph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        return graph


class Graphs:
    """Runs a step by its graph, or as it is from the first capture on that fails."""

    def __init__(self, capture: Capture | None) -> None:
        self._capture = capture
        self._graphs: dict[tuple[int, bool], Graph] = {}

    @property
    def num_captured(self) -> int:
        return len(self._graphs)

    def run(
        self, key: tuple[int, bool], step: Callable[[], None], *, rehearse: Callable[[Callable[[], None]], None]
    ) -> None:
        """`rehearse` runs a step and leaves no trace of it."""
        if self._capture is not None and key not in self._graphs:
            self._add(key, step, rehearse)
        if key in self._graphs:
            self._graphs[key].replay()
        else:
            step()

    def _add(
        self, key: tuple[int, bool], step: Callable[[], None], rehearse: Callable[[Callable[[], None]], None]
    ) -> None:
        assert self._capture is not None
        for _ in range(WARM_UPS):
            rehearse(step)
        try:
            self._graphs[key] = self._capture(step)
        except RuntimeError as error:
            self._capture = None
            lines = str(error).strip().splitlines() or [type(error).__name__]
            _logger.warning("Decode steps run without CUDA graphs, which is slower: %s", lines[0])
