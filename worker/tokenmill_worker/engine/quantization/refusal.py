"""Where a quantization does not exist: said at once, with what to do instead. Loads no model."""

from pathlib import Path

import torch

from tokenmill_worker.engine.api import EngineConfig, ModelError
from tokenmill_worker.engine.attention.cpu import library
from tokenmill_worker.engine.attention.cpu.toolchain import LibraryError


def refuse_if_impossible(config: EngineConfig, *, device: str, dtype: torch.dtype, cache_dir: Path) -> None:
    """Raises ModelError. Nothing falls back: who asks for int8 plans with its speed and its memory."""
    if config.quantization is None:
        return
    asked = f"quantization {config.quantization}"
    if device != "cpu":
        raise ModelError(f"{asked} exists for device cpu only, not for {device}: leave it out")
    if config.tier == 0:
        raise ModelError(f"{asked} belongs to tier 1: leave tier at auto")
    if dtype not in (torch.bfloat16, torch.float32):
        raise ModelError(f"{asked} takes dtype bfloat16 or float32, not {str(dtype).removeprefix('torch.')}")
    try:
        library.load(cache_dir)
    except LibraryError as error:
        raise ModelError(f"{asked} needs the C++ library: {error}") from error
