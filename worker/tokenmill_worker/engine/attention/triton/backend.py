"""Attention by Triton: the Backend of CUDA devices. Pages keep the order that their shapes say. Needs triton."""

from torch import Tensor

from tokenmill_worker.engine.attention.backend import AttentionSpec, KVPages
from tokenmill_worker.engine.attention.device_rows import DeviceRows
from tokenmill_worker.engine.attention.step import AttentionStep
from tokenmill_worker.engine.attention.triton import flash, launch
from tokenmill_worker.engine.attention.triton.device import Device, device_of
from tokenmill_worker.engine.attention.triton.plan import (
    DecodePlan,
    Plan,
    Prompts,
    Tiles,
    decode_step,
    plan_of,
)
from tokenmill_worker.engine.attention.triton.tiling import chunk_tiling, decode_tiling


class TritonBackend:
    """Decoding rows read their keys in splits; chunks share loads between tokens; whole prompts go to FlashAttention.

    Nothing waits for the device, and a step of one token a row reads only tensors: it may be captured in a CUDA graph.
    """

    name = "triton"

    def __init__(self, *, has_flash: bool, note: str = "", device: Device | None = None) -> None:
        self.note = note
        self._has_flash = has_flash
        self._device = device

    def decode_step(self, rows: DeviceRows) -> AttentionStep:
        """One token a row, all of it read from these tensors; for this backend only."""
        return decode_step(rows)

    def reads_only_stored(self, pages: KVPages) -> bool:
        """As ReadsOnlyStored: what lies beyond a row's context is masked where it would be loaded."""
        del pages
        return True

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, pages: KVPages, step: AttentionStep, spec: AttentionSpec
    ) -> Tensor:
        plan = plan_of(step, query.device)
        query, key, value = (part if part.stride(2) == 1 else part.contiguous() for part in (query, key, value))
        launch.store(query, key, value, None, pages, plan.rows.slots)
        return self._attend(query, key, value, pages, plan, step, spec)

    def rope_attend(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        pages: KVPages,
        step: AttentionStep,
        spec: AttentionSpec,
        num_heads: int,
    ) -> Tensor | None:
        """As RopeAttend; `qkv` is used up: its queries and keys are turned where they lie."""
        kv_heads, head_dim = pages.keys.shape[1], pages.keys.shape[3]
        if head_dim != pages.values.shape[3]:
            return None
        plan = plan_of(step, qkv.device)
        heads = qkv.view(len(qkv), -1, head_dim)
        query, key = heads[:, :num_heads], heads[:, num_heads : num_heads + kv_heads]
        value = heads[:, num_heads + kv_heads :]
        launch.store(query, key, value, (cos, sin), pages, plan.rows.slots)
        return self._attend(query, key, value, pages, plan, step, spec).flatten(1)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pages: KVPages,
        plan: Plan | DecodePlan,
        step: AttentionStep,
        spec: AttentionSpec,
    ) -> Tensor:
        """All rows of the step, each kind its way. Keys and values are stored."""
        has_flash = self._has_flash and flash.knows(query, key, value, spec)
        if has_flash and len(plan.prompts) == 1 and _is_all(plan.prompts[0], query):
            return flash.attend(query, key, value, plan.prompts[0], spec)
        result = query.new_empty(query.shape[0], query.shape[1], pages.values.shape[3])
        device, heads = self._device or device_of(query.device), launch.heads_of(query, pages)
        if plan.decoding.num_tiles:
            tiling = decode_tiling(heads, device)
            launch.attend(query, result, pages, plan.rows, plan.decoding, spec, tiling, device)
        tiling = chunk_tiling(heads, device)
        tile_tokens = tiling.tokens(heads.group)
        tiles: Tiles = step.plan(
            ("triton", tile_tokens, has_flash), lambda: plan.longer(tile_tokens, with_prompts=not has_flash)
        )
        if tiles.num_tiles:
            launch.attend(query, result, pages, plan.rows, tiles, spec, tiling, device)
        if has_flash:
            for prompts in plan.prompts:
                own = slice(prompts.start, prompts.end)
                result[own] = flash.attend(query[own], key[own], value[own], prompts, spec)
        return result


def _is_all(prompts: Prompts, query: Tensor) -> bool:
    return prompts.start == 0 and prompts.end == len(query)
