"""How long a sequence may get before this model would compute something else than its plain forward. Knows no pages."""

from collections.abc import Iterator
from typing import NamedTuple

from transformers import PretrainedConfig

from tokenmill_worker.engine.api import ModelError

UNSTATED_LIMIT = 4096  # tokens, for a config that states none and a user who asks for none


class LengthLimit(NamedTuple):
    tokens: int
    reason: str


def exact_limit(config: PretrainedConfig, *, passes_window: bool) -> LengthLimit | None:
    """The tightest of the model's limits. `passes_window`: the model tells attention its sliding window."""
    return min(_limits(config, passes_window=passes_window), key=lambda limit: limit.tokens, default=None)


def max_model_len(limit: LengthLimit | None, *, requested: int | None) -> int:
    """Tokens of prompt plus completion. Raises ModelError when more was requested than the model can do exactly."""
    if limit is None:
        return requested or UNSTATED_LIMIT
    if requested is not None and requested > limit.tokens:
        raise ModelError(f"max_model_len {requested} is too long: {limit.reason} ({limit.tokens} tokens)")
    return requested or limit.tokens


def narrowest_window(config: PretrainedConfig) -> int | None:
    """The sliding window that some layer has, if any."""
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    is_active = "sliding_attention" in layer_types if layer_types else getattr(config, "use_sliding_window", True)
    return window if window and is_active else None


def _limits(config: PretrainedConfig, *, passes_window: bool) -> Iterator[LengthLimit]:
    if positions := getattr(config, "max_position_embeddings", None):
        yield LengthLimit(positions, "the model was made for no more positions")
    for rope in _rope_parameters(config):
        if rope.get("rope_type") == "longrope" and (original := _original_positions(config, rope)):
            yield LengthLimit(
                original,
                "longrope changes the factors of a whole batch when one sequence gets longer, so one request would "
                "change its neighbours' output; only the short factors are used",
            )
    if chunk := getattr(config, "attention_chunk_size", None):
        yield LengthLimit(chunk, "the model attends in chunks, which packed attention does not know")
    window = narrowest_window(config)
    if window and not passes_window:
        yield LengthLimit(window, "the model keeps its sliding window to itself, so packed attention cannot apply it")


def _rope_parameters(config: PretrainedConfig) -> Iterator[dict[str, object]]:
    """One for the model, or one per layer type. "dynamic" rope is exact up to max_position_embeddings as it is."""
    parameters = getattr(config, "rope_parameters", None) or {}
    per_layer_type = [own for own in parameters.values() if isinstance(own, dict) and "rope_type" in own]
    yield from per_layer_type or [parameters]


def _original_positions(config: PretrainedConfig, rope: dict[str, object]) -> int | None:
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return original if isinstance(original, int) else None
