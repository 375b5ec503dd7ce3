"""Whether the Triton backend runs here, found out by running it. Importing this needs no triton."""

from functools import cache

import numpy as np
import torch

from tokenmill_worker.engine.api import EngineError
from tokenmill_worker.engine.attention.backend import AttentionSpec, Backend, KVPages
from tokenmill_worker.engine.attention.reference import ReferenceBackend
from tokenmill_worker.engine.attention.step import AttentionStep
from tokenmill_worker.engine.batch import PAGE_SIZE, PackedBatch

TOLERANCE = 1e-3  # of values around 1 in float32

_ROWS = ((40, 1), (3, 3), (70, 7))  # (context, tokens of the step): decoding, a whole prompt, a chunk
_SPEC = AttentionSpec(0.25)


class TritonError(EngineError):
    """The Triton backend cannot run; says why and what to do about it."""


@cache
def triton_backend(device: torch.device) -> Backend:
    """The backend, once it has computed a small step rightly there. Raises TritonError. Waits for the device."""
    try:
        import triton
    except ImportError as error:
        raise TritonError(f"triton is not installed ({error}); pip install triton, or a CUDA build of torch") from error
    is_interpreted = bool(triton.knobs.runtime.interpret)
    if device.type != "cuda" and not is_interpreted:
        raise TritonError("attention_backend triton needs a CUDA device (or TRITON_INTERPRET=1, slowly, for tests)")
    if device.type == "cuda" and is_interpreted:
        raise TritonError("TRITON_INTERPRET is set, which is for tests without a GPU; unset it")
    from tokenmill_worker.engine.attention.triton import flash
    from tokenmill_worker.engine.attention.triton.backend import TritonBackend

    _check(TritonBackend(has_flash=False), device)
    objection = flash.objection(device)
    if not objection or is_interpreted:
        return TritonBackend(has_flash=not objection)
    return TritonBackend(has_flash=False, note=f"prompts take longer: FlashAttention cannot be used, {objection}")


def _check(backend: Backend, device: torch.device) -> None:
    """Raises TritonError where the kernels do not compile, do not run, or compute something else."""
    try:
        ours, truth = (_attended(one, device) for one in (backend, ReferenceBackend()))
        differs = float((ours - truth).abs().max())
    except Exception as error:  # a compiler, a driver and a linker each have errors of their own
        lines = str(error).strip().splitlines() or [""]
        remedy = "triton needs a C compiler and a driver that fits it"
        raise TritonError(f"Triton's kernels do not run: {type(error).__name__}: {lines[0]}; {remedy}") from error
    if not differs <= TOLERANCE:  # also refuses NaN
        raise TritonError(f"Triton's kernels differ from the reference by {differs:.1e}; use attention_backend sdpa")


@torch.inference_mode()
def _attended(backend: Backend, device: torch.device) -> torch.Tensor:
    batch = _batch()
    generator = torch.Generator().manual_seed(0)
    num_pages = int(batch.page_starts[-1])
    query, key, value = (
        torch.randn(batch.num_tokens, heads, 16, generator=generator).to(device) for heads in (4, 2, 2)
    )
    pages = KVPages(*(torch.randn(num_pages, 2, PAGE_SIZE, 16, generator=generator).to(device) for _ in range(2)))
    step = AttentionStep.of(batch, torch.as_tensor(batch.slots.astype(np.int64), device=device))
    return backend.attend(query, key, value, pages, step, _SPEC)


def _batch() -> PackedBatch:
    positions = [np.arange(context - num_tokens, context) for context, num_tokens in _ROWS]
    counts = [-(-context // PAGE_SIZE) for context, _ in _ROWS]
    starts = np.cumsum([0, *counts])
    slots = [start * PAGE_SIZE + own for start, own in zip(starts, positions, strict=False)]
    return PackedBatch(
        token_ids=np.concatenate(positions).astype(np.int32),
        positions=np.concatenate(positions).astype(np.int32),
        slots=np.concatenate(slots).astype(np.int32),
        row_starts=np.cumsum([0, *(num_tokens for _, num_tokens in _ROWS)]).astype(np.int32),
        context_lens=np.array([context for context, _ in _ROWS], dtype=np.int32),
        page_ids=np.arange(starts[-1], dtype=np.int32),
        page_starts=starts.astype(np.int32),
    )
