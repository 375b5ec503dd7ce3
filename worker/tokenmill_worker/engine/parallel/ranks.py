"""The processes that share a model, and the line on which rank 0 speaks to the others. Knows no model and no batch.

Two process groups: the model's own collectives run on the default one, beside it every rank has a gloo group for a few
integers between forwards. Followers wait on the second one for as long as there is nothing to do; a process that dies
closes its connections, which ends the wait of all others with an error.
"""

from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tokenmill_worker.engine.api import EngineError
from tokenmill_worker.engine.batch import Ints

FORWARD_TIMEOUT = timedelta(minutes=10)  # of one collective in a forward: no step takes that long
IDLE_TIMEOUT = timedelta(days=365)  # between two steps: a queue may stay empty
FIRST_PART = 4096  # int32 of a message that travel with its length: a decoding step of 64 rows is one round


class Ranks:
    """`size` processes of one model, this one being `rank`. Every method is a collective: all ranks call it."""

    def __init__(self, control: dist.ProcessGroup) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._control = control

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    @classmethod
    def join(cls, size: int, *, device: str) -> "Ranks":
        """Meets the other processes. Raises EngineError when this one was not started as one of `size`."""
        _init_process_group(size, device)
        if dist.get_world_size() != size:
            started = dist.get_world_size()
            raise EngineError(
                f"tensor_parallel_size is {size}, but {started} processes were started: "
                f"torchrun --nproc-per-node {size} starts as many as it needs"
            )
        return cls(dist.new_group(backend="gloo", timeout=IDLE_TIMEOUT))

    def least(self, value: int) -> int:
        """The smallest of what the ranks say."""
        values = torch.tensor([value], dtype=torch.int64)
        dist.all_reduce(values, op=dist.ReduceOp.MIN, group=self._control)
        return int(values)

    def send(self, message: Ints) -> None:
        """By rank 0: every other rank's `receive` gives this."""
        first = torch.zeros(FIRST_PART + 1, dtype=torch.int32)
        first[0] = len(message)
        whole = torch.from_numpy(message)
        first[1 : 1 + len(message)] = whole[:FIRST_PART]
        self._broadcast(first)
        if len(message) > FIRST_PART:
            self._broadcast(whole[FIRST_PART:].contiguous())

    def receive(self) -> Ints:
        """By the others: waits until rank 0 sends."""
        first = torch.empty(FIRST_PART + 1, dtype=torch.int32)
        self._broadcast(first)
        length = int(first[0])
        message = first[1 : 1 + length].numpy()
        if length <= FIRST_PART:
            return message
        rest = torch.empty(length - FIRST_PART, dtype=torch.int32)
        self._broadcast(rest)
        return np.concatenate([message, rest.numpy()])

    def _broadcast(self, values: Tensor) -> None:
        dist.broadcast(values, src=0, group=self._control)


def _init_process_group(size: int, device: str) -> None:
    if dist.is_initialized():
        return
    try:
        if device == "cuda":
            _init_on_gpu(size)
        else:
            dist.init_process_group("gloo", timeout=FORWARD_TIMEOUT)
    except ValueError as error:  # a variable of torchrun's is not set
        raise EngineError(
            f"tensor_parallel_size {size} needs {size} processes: start with `tokenmill worker`, "
            f"or `torchrun --nproc-per-node {size} ...` ({error})"
        ) from error


def _init_on_gpu(size: int) -> None:
    """One GPU for each process of this machine."""
    local_rank = dist.get_node_local_rank(fallback_rank=0)
    if local_rank >= torch.cuda.device_count():
        raise EngineError(
            f"tensor_parallel_size {size} needs a GPU for each process, and here are {torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", timeout=FORWARD_TIMEOUT, device_id=device)
