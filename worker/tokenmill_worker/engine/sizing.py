"""How many pages the KV pool gets: what the user said, or what the memory allows and the rows can use."""

import numpy as np
import torch

from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.api import EngineConfig, ModelError
from tokenmill_worker.engine.batch import PAGE_SIZE, PackedBatch
from tokenmill_worker.engine.kv_pool import KVPool
from tokenmill_worker.engine.memory import available_bytes

CPU_SHARE = 0.25  # of what is free once the weights are loaded: the engine is not alone on the machine
CUDA_SHARE = 0.9  # of what is free once a full step has run: the rest is for fragmentation


def num_pages(adapter: Adapter, config: EngineConfig, *, max_model_len: int) -> int:
    """Raises ModelError when not even one page fits."""
    if config.kv_cache_tokens is not None:
        return max(1, _pages(config.kv_cache_tokens))
    page_bytes = PAGE_SIZE * sum(shape.bytes_per_token(adapter.kv_dtype) for shape in adapter.layers)
    budget = _budget(adapter, min(config.max_num_batched_tokens, max_model_len), config.tensor_parallel_size)
    affordable = adapter.least_of_ranks(budget // page_bytes)
    if affordable == 0:
        raise ModelError("no memory is left for the KV pool: choose a smaller model or dtype, or set kv_cache_tokens")
    return min(affordable, config.max_num_seqs * _pages(max_model_len))


def _budget(adapter: Adapter, step_tokens: int, num_processes: int) -> int:
    """Bytes. On CUDA a step runs first, so that what activations take is taken already."""
    if adapter.device.type != "cuda":
        return int(available_bytes(adapter.device) * CPU_SHARE) // num_processes
    _run_step(adapter, step_tokens)
    torch.cuda.synchronize(adapter.device)
    return int(available_bytes(adapter.device) * CUDA_SHARE)


def _run_step(adapter: Adapter, num_tokens: int) -> None:
    """One row of the widest kind, over pages of its own."""
    adapter.bind(KVPool(adapter.layers, num_pages=_pages(num_tokens), dtype=adapter.kv_dtype, device=adapter.device))
    positions = np.arange(num_tokens, dtype=np.int32)
    pages = np.arange(_pages(num_tokens), dtype=np.int32)
    batch = PackedBatch(
        token_ids=positions % adapter.vocab_size,
        positions=positions,
        slots=positions,
        row_starts=np.array([0, num_tokens], dtype=np.int32),
        context_lens=np.array([num_tokens], dtype=np.int32),
        page_ids=pages,
        page_starts=np.array([0, len(pages)], dtype=np.int32),
    )
    adapter.logits(batch, np.array([num_tokens - 1]))


def _pages(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_SIZE)
