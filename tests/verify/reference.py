"""The model as transformers runs it, one prompt at a time: the judge of all that the engine says. Knows no engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenmill_worker.engine.loading import quiet_transformers
from torch import Tensor
from transformers import AutoModelForCausalLM


class Reference:
    """Plain float32 Hugging Face model in `folder`, with its default attention."""

    def __init__(self, folder: Path, *, attention: str | None = None) -> None:
        """`attention`: transformers' name of an implementation; None leaves the choice to the model, as users do."""
        with quiet_transformers():
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation=attention
            )

    @torch.inference_mode()
    def generate(self, prompt: Sequence[int], *, max_tokens: int, ignore_eos: bool = False) -> list[int]:
        """Greedy, with its KV cache; the token that ends it is included."""
        token_ids = torch.tensor([list(prompt)])
        stops = {"eos_token_id": None} if ignore_eos else {}
        output = self._model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=0,
            **stops,
        )
        generated: list[int] = output[0, len(prompt) :].tolist()
        return generated

    @torch.inference_mode()
    def forced_logits(self, prompt: Sequence[int], output: Sequence[int]) -> Tensor:
        """The logits from which each token of `output` would be drawn, had the model said the earlier ones: [n, V]."""
        token_ids = torch.tensor([[*prompt, *output[:-1]]])
        logits: Tensor = self._model(input_ids=token_ids, use_cache=False, logits_to_keep=len(output)).logits[0]
        return logits
