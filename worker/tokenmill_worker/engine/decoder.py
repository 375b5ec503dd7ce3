"""Launches decode steps through the program and its graphs; the runner takes every other step. Knows no scheduler."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.api import EngineConfig
from tokenmill_worker.engine.attention.device_rows import decode_step_of
from tokenmill_worker.engine.batch import PackedBatch, Samples
from tokenmill_worker.engine.decode_program import DecodeProgram
from tokenmill_worker.engine.device_draws import Again, Drawing
from tokenmill_worker.engine.graphs import Capture, CudaCapture, Graphs, bucket_for
from tokenmill_worker.engine.transfer import Arriving


class Decoder:
    """`capture` None: steps run as they are, over the same buffers."""

    def __init__(self, program: DecodeProgram, capture: Capture | None) -> None:
        self._program = program
        self.graphs = Graphs(capture)

    def takes(self, batch: PackedBatch) -> bool:
        return self._program.takes(batch)

    @torch.inference_mode()
    def launch(self, batch: PackedBatch, last: Tensor | None) -> Drawing:
        """`last`: what the step before drew. The next one's is `Drawing.token_ids`."""
        try:
            return self._launch(batch, last)
        except Exception:  # nobody knows how far it came
            self._program.distrust_rows()
            raise

    def _launch(self, batch: PackedBatch, last: Tensor | None) -> Drawing:
        samples, num_rows = Samples.of(batch.samples), batch.num_rows
        bucket, is_drawing = bucket_for(num_rows), not bool(samples.is_greedy.all())
        program = self._program
        if is_drawing:
            program.make_room_for_logits()
        program.prepare(batch, last, bucket=bucket)
        step = partial(program.run, bucket, is_drawing=is_drawing)
        self.graphs.run((bucket, is_drawing), step, rehearse=program.rehearse)
        again = None
        if is_drawing and program.logits is not None:
            again = Again(np.arange(num_rows), program.logits[:num_rows].clone())
        return Drawing(samples, program.token_ids, Arriving([program.results[:, :num_rows]]), again)


def decoder_for(adapter: Adapter, config: EngineConfig, *, max_model_len: int) -> Decoder | None:
    """None where nothing is gained by one: without CUDA graphs, or with attention that plans on the host."""
    make_step = decode_step_of(adapter.backend)
    if make_step is None or adapter.device.type != "cuda" or not config.cuda_graphs:
        return None
    max_rows = bucket_for(min(config.max_num_seqs, config.max_num_batched_tokens))
    program = DecodeProgram(adapter, make_step, max_rows=max_rows, max_model_len=max_model_len)
    return Decoder(program, CudaCapture())
