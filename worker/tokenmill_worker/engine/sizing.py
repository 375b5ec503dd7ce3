"""How many pages the KV pool gets: what the user said, or what the memory allows and the rows can use."""

from collections.abc import Sequence

import numpy as np
import torch

from tokenmill_worker.engine import device_draws
from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.api import EngineConfig, ModelError, SamplingParams
from tokenmill_worker.engine.batch import PAGE_SIZE, PackedBatch, SampleRow
from tokenmill_worker.engine.kv_pool import KVPool
from tokenmill_worker.engine.memory import available_bytes, usable_bytes

CPU_SHARE = 0.25  # of what is free once the weights are loaded: the engine is not alone on the machine
COSTLIEST = SamplingParams(temperature=1.0, top_p=0.9, logprobs=20)


def num_pages(adapter: Adapter, config: EngineConfig, *, max_model_len: int) -> int:
    """Raises ModelError when not even one page fits."""
    if config.kv_cache_tokens is not None:
        return max(1, _pages(config.kv_cache_tokens))
    page_bytes = PAGE_SIZE * sum(shape.bytes_per_token(adapter.kv_dtype) for shape in adapter.layers)
    affordable = adapter.least_of_ranks(_budget(adapter, config, max_model_len) // page_bytes)
    if affordable == 0:
        raise ModelError("no memory is left for the KV pool: choose a smaller model or dtype, or set kv_cache_tokens")
    return min(affordable, config.max_num_seqs * _pages(max_model_len))


def _budget(adapter: Adapter, config: EngineConfig, max_model_len: int) -> int:
    """Bytes. On CUDA the largest step runs first, so that what activations take is taken already."""
    if adapter.device.type != "cuda":
        return int(available_bytes(adapter.device) * CPU_SHARE) // config.tensor_parallel_size
    torch.cuda.empty_cache()  # what the load guard took, which may be twice the weights
    run_largest_step(adapter, config, max_model_len=max_model_len)
    torch.cuda.synchronize(adapter.device)
    free, total = torch.cuda.mem_get_info(adapter.device)
    return usable_bytes(free, total, utilization=config.gpu_memory_utilization)


def run_largest_step(adapter: Adapter, config: EngineConfig, *, max_model_len: int) -> None:
    """As many rows as there may be, that share as many tokens as there may be, and draw in the costliest way."""
    num_rows = min(config.max_num_seqs, config.max_num_batched_tokens)
    lengths = [len(part) for part in np.array_split(np.arange(config.max_num_batched_tokens), num_rows)]
    batch = _fresh([min(length, max_model_len) for length in lengths], adapter.vocab_size)
    num_pages = int(batch.page_starts[-1])
    adapter.bind(KVPool(adapter.layers, num_pages=num_pages, dtype=adapter.kv_dtype, device=adapter.device))
    nothing = np.zeros(0, dtype=np.int32)
    logits = adapter.logits(batch, batch.row_starts[1:] - 1)
    device_draws.launch(logits, [SampleRow(row, COSTLIEST, row, 0, nothing, nothing) for row in range(num_rows)]).read()


def _fresh(lengths: Sequence[int], vocab_size: int) -> PackedBatch:
    """Rows of new prompts, each in pages of its own."""
    positions = [np.arange(length, dtype=np.int32) for length in lengths]
    num_pages = [_pages(length) for length in lengths]
    page_starts = np.cumsum([0, *num_pages]).astype(np.int32)
    slots = [own + start * PAGE_SIZE for own, start in zip(positions, page_starts.tolist(), strict=False)]
    return PackedBatch(
        token_ids=np.concatenate(positions) % vocab_size,
        positions=np.concatenate(positions),
        slots=np.concatenate(slots).astype(np.int32),
        row_starts=np.cumsum([0, *lengths]).astype(np.int32),
        context_lens=np.array(lengths, dtype=np.int32),
        page_ids=np.arange(page_starts[-1], dtype=np.int32),
        page_starts=page_starts,
    )


def _pages(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_SIZE)
