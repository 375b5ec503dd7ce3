"""Attention that decodes from device rows, in plain torch: what a GPU backend does inside a CUDA graph."""

import numpy as np
import torch
from tokenmill_worker.engine.attention import AttentionSpec, AttentionStep, KVPages
from tokenmill_worker.engine.attention.device_rows import DeviceRows
from tokenmill_worker.engine.attention.sdpa import SdpaBackend
from tokenmill_worker.engine.batch import PAGE_SIZE, PackedBatch
from torch import Tensor
from torch.nn import functional as F

_NOBODY = np.zeros(0, dtype=np.int32)
_NO_BATCH = PackedBatch(_NOBODY, _NOBODY, _NOBODY, np.zeros(1, np.int32), _NOBODY, _NOBODY, np.zeros(1, np.int32))


class GatheredBackend(SdpaBackend):
    """Other steps go sdpa's way. No window, softcap or sinks."""

    name = "gathered"

    def decode_step(self, rows: DeviceRows) -> AttentionStep:
        return AttentionStep(_NO_BATCH, rows.slots, {"gathered": rows})

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, pages: KVPages, step: AttentionStep, spec: AttentionSpec
    ) -> Tensor:
        rows = step.plans.get("gathered")
        if not isinstance(rows, DeviceRows):
            return super().attend(query, key, value, pages, step, spec)
        is_stored = rows.slots >= 0
        slots = rows.slots[is_stored]
        for part, tokens in zip(pages, (key, value), strict=True):
            part.transpose(1, 2).index_put_((slots // PAGE_SIZE, slots % PAGE_SIZE), tokens[is_stored])
        keys, values = (part[rows.page_table].transpose(1, 2).flatten(2, 3) for part in pages)  # [R, kv_heads, L, D]
        seen = torch.arange(keys.shape[2]) < rows.context_lens[:, None]
        attended = F.scaled_dot_product_attention(
            query[:, :, None], keys, values, attn_mask=seen[:, None, None], scale=spec.scale, enable_gqa=True
        )
        return attended[:, :, 0].nan_to_num()
