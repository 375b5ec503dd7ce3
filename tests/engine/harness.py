"""Small engines on the echo model, and running requests through them with every invariant checked after every step."""

import time
from collections.abc import Sequence

from tokenmill_worker.engine.api import EngineConfig, EngineRequest, RequestOutput, ResumedChoice, SamplingParams
from tokenmill_worker.engine.batch import PackedBatch, Runner, Sampled
from tokenmill_worker.engine.echo import EchoRunner, EchoTokenizer
from tokenmill_worker.engine.engine import Engine
from tokenmill_worker.engine.metronome import Clock
from tokenmill_worker.engine.offline import OutputDraft

MAX_STEPS = 20_000  # far more than any test needs: a test that reaches it found a deadlock


class Spy:
    """A runner that keeps the batches it ran and passes them on."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.vocab_size, self.max_model_len = runner.vocab_size, runner.max_model_len
        self.num_pages, self.device, self.fingerprint = runner.num_pages, runner.device, runner.fingerprint
        self.batches: list[PackedBatch] = []

    def run(self, batch: PackedBatch) -> Sequence[Sampled]:
        self.batches.append(batch)
        return self.runner.run(batch)


def make_engine(
    *,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 64,
    num_pages: int = 256,
    max_model_len: int = 1024,
    enable_prefix_caching: bool = True,
    overlap: bool = False,
    runner: Runner | None = None,
    clock: Clock = time.perf_counter,
    **settings: object,
) -> Engine:
    config = EngineConfig(
        model="echo",
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        enable_prefix_caching=enable_prefix_caching,
        overlap=overlap,
        **settings,  # type: ignore[arg-type]  # further fields of the config
    )
    runner = runner or EchoRunner(num_pages=num_pages, max_model_len=max_model_len)
    return Engine(config, runner=runner, tokenizer=EchoTokenizer(), clock=clock)


def make_request(
    prompt: str | Sequence[int],
    params: SamplingParams | None = None,
    *,
    request_id: str = "r",
    priority: int = 0,
    resume: tuple[ResumedChoice, ...] = (),
) -> EngineRequest:
    return EngineRequest(
        request_id=request_id,
        prompt_token_ids=EchoTokenizer().encode(prompt) if isinstance(prompt, str) else prompt,
        params=params or SamplingParams(max_tokens=16),
        priority=priority,
        resume=resume,
    )


def finish(engine: Engine, *requests: EngineRequest) -> dict[str, RequestOutput]:
    """Add the requests and step until the engine has no work."""
    drafts = {request.request_id: OutputDraft(request) for request in requests}
    for request in requests:
        engine.add_request(request)
    for _ in range(MAX_STEPS):
        if not engine.has_work():
            break
        for event in engine.step():
            drafts[event.request_id].add(event)
        engine.check_integrity()
    assert not engine.has_work(), "the engine makes no progress"
    return {request_id: draft.output() for request_id, draft in drafts.items()}
