"""Runs packed batches on a real model: one forward, one draw per sampled row. Knows no scheduler and no request."""

from torch import Tensor  # noqa: TC002  # beside the engine's own modules, as everywhere else

from tokenmill_worker.engine import device_draws
from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.batch import Draws, Ints, PackedBatch, Samples
from tokenmill_worker.engine.decoder import Decoder
from tokenmill_worker.engine.device_draws import Drawing
from tokenmill_worker.engine.kv_pool import KVPool
from tokenmill_worker.engine.memory import returned_memory
from tokenmill_worker.engine.sampler import sample_answers


class ModelRunner:
    """batch.Runner and batch.Launcher for a Hugging Face model. Owns the KV pool's memory; who uses which page is told
    in each batch. `decoder` launches the steps that it takes, if there is one.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        num_pages: int,
        max_model_len: int,
        fingerprint: str,
        decoder: Decoder | None = None,
    ) -> None:
        self.vocab_size = adapter.vocab_size
        self.max_model_len = max_model_len
        self.num_pages = num_pages
        self.device = str(adapter.device)
        self.fingerprint = fingerprint
        self._adapter = adapter
        self._decoder = decoder
        self._last: Tensor | None = None  # what the last launched step drew, on the device
        adapter.bind(KVPool(adapter.layers, num_pages=num_pages, dtype=adapter.kv_dtype, device=adapter.device))

    def run(self, batch: PackedBatch) -> Draws:
        samples = Samples.of(batch.samples)
        with returned_memory():
            needs_no_logits = samples.is_plain & samples.is_greedy
            return sample_answers(self._adapter.answers(batch, _last_tokens(batch, samples), needs_no_logits), samples)

    def launch(self, batch: PackedBatch) -> Drawing:
        with returned_memory():
            if self._decoder is not None and self._decoder.takes(batch):
                drawing = self._decoder.launch(batch, self._last)
            else:
                drawing = self._launch(batch)
        self._last = drawing.token_ids
        return drawing

    def _launch(self, batch: PackedBatch) -> Drawing:
        samples = Samples.of(batch.samples)
        logits = self._adapter.logits(batch, _last_tokens(batch, samples), self._last)
        return device_draws.launch(logits, samples)


def _last_tokens(batch: PackedBatch, samples: Samples) -> Ints:
    """Of the rows that are sampled, as indexes of the run."""
    return batch.row_starts[samples.rows + 1] - 1
