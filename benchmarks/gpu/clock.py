"""Time on a device: when it is done, and how long it had nothing to do. Knows no engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tokenmill_worker.engine.batch import Launch, Launcher, PackedBatch


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class IdleClock:
    """Between the end of a step on the device and the start of the next one it idles. Put around what launches."""

    def __init__(self, launcher: Launcher, device: torch.device) -> None:
        self._launcher = launcher
        self._is_measuring = device.type == "cuda"
        self._events: list[tuple[Any, Any]] = []

    def launch(self, batch: PackedBatch) -> Launch:
        if not self._is_measuring:
            return self._launcher.launch(batch)
        events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]  # torch has no types here
        events[0].record()
        launched = self._launcher.launch(batch)
        events[1].record()
        self._events.append((events[0], events[1]))
        return launched

    @contextmanager
    def over(self) -> Iterator[None]:
        """Only what is launched inside counts."""
        self._events.clear()
        yield

    def idle_fraction(self) -> float | None:
        """Call it when the device is done. None where nothing was measured."""
        if len(self._events) < 2:
            return None
        total = self._events[0][0].elapsed_time(self._events[-1][1])
        busy = sum(start.elapsed_time(end) for start, end in self._events)
        return round(max(0.0, 1 - float(busy) / float(total)), 4)
