"""What the kernels' sizes depend on of a device. Knows no kernel. Importing this needs no triton."""

from functools import cache
from typing import NamedTuple

import torch


class Device(NamedTuple):
    num_processors: int
    shared_bytes: int  # that one program may have


INTERPRETER = Device(num_processors=1, shared_bytes=227 * 1024)  # one: it runs programs one after the other


@cache
def device_of(device: torch.device) -> Device:
    if device.type != "cuda":
        return INTERPRETER
    from triton.runtime import driver

    properties = driver.active.utils.get_device_properties(device.index or 0)
    return Device(properties["multiprocessor_count"], properties["max_shared_mem"])
