"""Between host and device without anybody waiting: pinned memory both ways. Knows no step."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The host goes on at once; later work of the stream finds the data. On a CPU the tensor shares its memory."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


class Arriving:
    """Tensors on their way to the host. They are what they were when this was made, whatever the stream does next.

    The pinned memory comes from torch's own cache of blocks, which is a ring as long as steps have the same shape.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self._host = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
            for host, tensor in zip(self._host, tensors, strict=True):
                host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types here
            self._event.record()
        else:
            self._host = [tensor.clone() for tensor in tensors]

    def wait(self) -> list[np.ndarray]:
        """Waits for the tensors alone, not for what was launched after them."""
        if self._event is not None:
            self._event.synchronize()
        return [host.numpy() for host in self._host]
