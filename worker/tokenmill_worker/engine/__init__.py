"""Pure generation: token ids in, token ids out. Knows nothing of Redis, pydantic, queues or settings files.

Names load on first use (PEP 562), so that the torch-free modules below import without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenmill_worker.engine.api import EngineConfig, SamplingParams
    from tokenmill_worker.engine.engine import Engine

__all__ = ["Engine", "EngineConfig", "SamplingParams"]

_HOME = {"Engine": "engine", "EngineConfig": "api", "SamplingParams": "api"}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
