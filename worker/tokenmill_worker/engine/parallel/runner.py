"""Rank 0's runner and what the other ranks do meanwhile: the same forwards, step by step. Knows no scheduler."""

import atexit
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.api import ModelLostError
from tokenmill_worker.engine.batch import Draws, Ints, PackedBatch, Samples
from tokenmill_worker.engine.kv_pool import KVPool
from tokenmill_worker.engine.parallel.message import STOP, Step, decode, encode
from tokenmill_worker.engine.parallel.ranks import Ranks
from tokenmill_worker.engine.sampler import sample


class LeadingRunner:
    """batch.Runner of rank 0. A forward that fails on one rank ends all: nobody knows where the others stand."""

    def __init__(self, adapter: Adapter, ranks: Ranks, *, num_pages: int, max_model_len: int, fingerprint: str) -> None:
        self.vocab_size = adapter.vocab_size
        self.max_model_len = max_model_len
        self.num_pages = num_pages
        self.device = str(adapter.device)
        self.fingerprint = fingerprint
        self._adapter, self._ranks = adapter, ranks
        self._is_open = True
        _bind(adapter, num_pages)
        atexit.register(self.close)  # the others wait for a last word, also from a script that forgot it

    def run(self, batch: PackedBatch) -> Draws:
        """Raises ModelLostError when the forward failed: the process must then end."""
        samples = Samples.of(batch.samples)
        return sample(self._logits(batch, batch.row_starts[samples.rows + 1] - 1), samples)

    def close(self) -> None:
        """The last word to the others. A second one is nothing."""
        atexit.unregister(self.close)
        if self._is_open:
            self._is_open = False
            self._ranks.send(STOP)

    def _logits(self, batch: PackedBatch, keep: Ints) -> Tensor:
        """[S, V], computed by all ranks."""
        if not self._is_open:
            raise ModelLostError("this engine was closed, or has lost a process that shares its model")
        self._is_open = False  # until all of them are through: nobody listens to a stop word amid a forward
        try:
            self._ranks.send(encode(Step(batch, keep)))
            logits = self._adapter.logits(batch, keep)
        except Exception as error:  # whatever it is, the ranks may be at different places now
            raise ModelLostError(
                f"a forward over {self._ranks.size} processes failed, so they have to start anew: "
                f"{type(error).__name__}: {error}"
            ) from error
        self._is_open = True
        return logits


def follow(adapter: Adapter, ranks: Ranks, *, num_pages: int) -> None:
    """Every step that rank 0 sends, until its stop word. Raises ModelLostError when rank 0 is gone or a step fails."""
    _bind(adapter, num_pages)
    with _deaf_to_signals():
        try:
            while len(message := ranks.receive()):
                step = decode(message)
                adapter.logits(step.batch, step.keep)
        except Exception as error:
            raise ModelLostError(
                f"process {ranks.rank} of {ranks.size} that share a model has lost the others: "
                f"{type(error).__name__}: {error}"
            ) from error


def _bind(adapter: Adapter, num_pages: int) -> None:
    """This rank's heads of every page: page ids mean the same on all ranks."""
    adapter.bind(KVPool(adapter.layers, num_pages=num_pages, dtype=adapter.kv_dtype, device=adapter.device))


@contextmanager
def _deaf_to_signals() -> Iterator[None]:
    """torchrun and terminals signal every rank; rank 0 drains, and the others have to stay until it is through."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
