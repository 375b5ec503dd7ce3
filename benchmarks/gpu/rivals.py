"""transformers on the same work: its continuous batching, and generate() on one batch. Knows no engine of ours."""

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from tokenmill_worker.engine.loading import quiet_transformers
from transformers import GenerationConfig, PreTrainedModel

from benchmarks.gpu.clock import wait_for

TokenIds = list[int]
Rival = Callable[[PreTrainedModel, Sequence[TokenIds], int], int]


def answers(model: PreTrainedModel, token_ids: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """generate(), greedy: token_ids [B, T] -> [B, num_tokens]."""
    generate: Any = model.generate
    result: torch.Tensor = generate(
        token_ids,
        attention_mask=torch.ones_like(token_ids),
        do_sample=False,
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        pad_token_id=0,
        eos_token_id=None,
    )
    return result[:, token_ids.shape[1] :]


def static_generate(model: PreTrainedModel, work: Sequence[TokenIds], num_tokens: int) -> int:
    """All prompts, of one length, as one batch; the number of output tokens."""
    return int(answers(model, torch.tensor(list(work), device=model.device), num_tokens).numel())


def continuous_batching(model: PreTrainedModel, work: Sequence[TokenIds], num_tokens: int) -> int:
    make_config: Any = GenerationConfig
    config = make_config(max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    generate_batch: Any = cast("Any", model).generate_batch
    outputs = generate_batch(inputs=list(work), generation_config=config, progress_bar=False)
    return sum(len(output.generated_tokens) for output in outputs.values())


RIVALS: dict[str, Rival] = {
    "transformers_static_generate": static_generate,
    "transformers_continuous_batching": continuous_batching,
}


def rate(rival: Rival, model: PreTrainedModel, work: Sequence[TokenIds], num_tokens: int) -> float | str:
    """Useful output tokens per second, after a few to warm up; or why it does not run here."""
    try:
        with quiet_transformers(), torch.no_grad():
            rival(model, work, min(4, num_tokens))
            wait_for(model.device)
            started_s = time.perf_counter()
            num_done = rival(model, work, num_tokens)
            wait_for(model.device)
            seconds = time.perf_counter() - started_s
    except Exception as error:  # a rival that fails must not cost the others' figures
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    expected = len(work) * num_tokens
    return num_done / seconds if num_done == expected else f"gave {num_done} of {expected} tokens"
