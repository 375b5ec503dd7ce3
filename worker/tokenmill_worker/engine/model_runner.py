"""Runs packed batches on a real model: one forward, one draw per sampled row. Knows no scheduler and no request."""

from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.batch import Draws, PackedBatch, Samples
from tokenmill_worker.engine.kv_pool import KVPool
from tokenmill_worker.engine.sampler import sample


class ModelRunner:
    """batch.Runner for a Hugging Face model. Owns the KV pool's memory; who uses which page is told in each batch."""

    def __init__(self, adapter: Adapter, *, num_pages: int, max_model_len: int, fingerprint: str) -> None:
        self.vocab_size = adapter.vocab_size
        self.max_model_len = max_model_len
        self.num_pages = num_pages
        self.device = str(adapter.device)
        self.fingerprint = fingerprint
        self._adapter = adapter
        adapter.bind(KVPool(adapter.layers, num_pages=num_pages, dtype=adapter.kv_dtype, device=adapter.device))

    def run(self, batch: PackedBatch) -> Draws:
        samples = Samples.of(batch.samples)
        last_tokens = batch.row_starts[samples.rows + 1] - 1
        return sample(self._adapter.logits(batch, last_tokens), samples)
