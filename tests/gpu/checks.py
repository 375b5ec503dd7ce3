"""What is asserted of the engine on any device, over models with random weights. Knows no pytest."""

from collections.abc import Sequence

import torch
from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams
from tokenmill_worker.engine.api import RequestOutput
from transformers import PreTrainedModel

from benchmarks.gpu import ours, rivals, shapes
from benchmarks.gpu.shapes import Plan

NEAR_TIE = 1e-4  # of logits: where two tokens are nearer than that, either may be the likeliest


class Subject:
    """One random model, in as many engines as are asked for; float32, so that a difference has no other reason."""

    def __init__(self, plan: Plan, name: str, device: torch.device) -> None:
        self.shape = plan.shapes[name]
        self.device = device
        self.vocab_size: int = self.shape.config.vocab_size

    def model(self) -> PreTrainedModel:
        return shapes.make_model(self.shape, device=self.device, dtype=torch.float32)

    def engine(self, *, max_model_len: int, **settings: object) -> Engine:
        stated: dict[str, object] = {"max_num_seqs": 16, "max_num_batched_tokens": 2048, "kv_cache_tokens": 65536}
        config = EngineConfig(**{**stated, **settings})  # type: ignore[arg-type]  # plain values of a test
        return ours.engine_of(self.model(), config, max_model_len=max_model_len)

    def prompts(self, lengths: Sequence[int]) -> list[list[int]]:
        return [ours.prompts(1, length, self.vocab_size)[0] for length in lengths]


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)


def tokens(outputs: Sequence[RequestOutput]) -> list[list[list[int]]]:
    return [[choice.token_ids for choice in output.choices] for output in outputs]


@torch.inference_mode()
def complaints(model: PreTrainedModel, outputs: Sequence[RequestOutput]) -> list[str]:
    """Tokens that are not the likeliest ones of the model's own forward, but for near ties."""
    found = []
    for output in outputs:
        prompt, said = output.prompt_token_ids, output.token_ids
        logits = model(torch.tensor([[*prompt, *said]], device=model.device)).logits[0, len(prompt) - 1 : -1].float()
        own = logits.gather(1, torch.tensor(said, device=model.device)[:, None])[:, 0]
        worst = float((logits.max(-1).values - own).max())
        if not worst <= NEAR_TIE:
            found.append(f"{output.request_id}: {worst:.2e} below the likeliest")
    return found


def generated(model: PreTrainedModel, prompt: list[int], num_tokens: int) -> list[int]:
    """generate()'s own answer, greedy."""
    token_ids = torch.tensor([prompt], device=model.device)
    answer = rivals.answers(model, token_ids, num_tokens)[0].tolist()
    return [int(token) for token in answer]
