"""Attention over pages: one custom op, its backends, the step they share. Knows no model, scheduler or request."""

from tokenmill_worker.engine.attention.backend import AttentionSpec, Backend, KVPages
from tokenmill_worker.engine.attention.op import activate, attention
from tokenmill_worker.engine.attention.reference import ReferenceBackend
from tokenmill_worker.engine.attention.sdpa import SdpaBackend
from tokenmill_worker.engine.attention.step import AttentionStep

__all__ = ["AttentionSpec", "AttentionStep", "Backend", "KVPages", "activate", "attention", "backend_named"]


def backend_named(name: str) -> Backend:
    """`auto` is the fastest backend that runs everywhere."""
    backends: dict[str, type[Backend]] = {
        "auto": SdpaBackend,
        "sdpa": SdpaBackend,
        "reference": ReferenceBackend,
    }
    return backends[name]()
