"""Attention over pages: one custom op, its backends, the step they share. Knows no model, scheduler or request."""

from tokenmill_worker.engine.attention.backend import AttentionSpec, Backend, KVPages, needs_clean_pages
from tokenmill_worker.engine.attention.choice import backend_named
from tokenmill_worker.engine.attention.op import activate, attention
from tokenmill_worker.engine.attention.rope import rope_attention
from tokenmill_worker.engine.attention.step import AttentionStep

__all__ = [
    "AttentionSpec",
    "AttentionStep",
    "Backend",
    "KVPages",
    "activate",
    "attention",
    "backend_named",
    "needs_clean_pages",
    "rope_attention",
]
