"""The engine's vocabulary: what goes in, what comes out. Plain frozen values; no torch, no IO."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "cancelled", "expired", "error"]

AT_LEAST_ONE = (  # of EngineConfig
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "kv_cache_tokens",
    "num_threads",
    "tensor_parallel_size",
    "scheduling_interval",
)
ABOVE_ZERO = ("target_tpot_ms", "target_ttft_ms")  # where they are set


class EngineError(Exception):
    """Anything the engine refuses to do, with what to do about it in the message.

    EngineError
    ├── InvalidRequestError   this request can never run as asked (its own fault, nobody else's)
    ├── ModelError            this model cannot be loaded or run packed
    └── ModelLostError        a process that shares the model is gone: this one has to end as well
    """


class InvalidRequestError(EngineError):
    """`param` names the field at fault, `code` is stable for programs, str() is for people."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ModelError(EngineError):
    """The model cannot be found, loaded, or run in a packed row; the message gives the reason."""


class ModelLostError(EngineError):
    """The model runs over several processes, and they no longer run together. No request is to blame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request draws its tokens. Invalid values raise InvalidRequestError at construction.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 keep every token; `min_p` drops tokens less likely than
    `min_p` times the likeliest. `logprobs` None: none; k: the chosen token's and the k likeliest tokens'
    log-probabilities under the raw distribution. `seed` None: derived from the request id.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 256
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _in_range("temperature", self.temperature, 0.0, 100.0)
        _in_range("top_p", self.top_p, 0.0, 1.0, exclude_low=True)
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _in_range("repetition_penalty", self.repetition_penalty, 0.0, 100.0, exclude_low=True)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _at_least("top_k", self.top_k, 0)
        _at_least("max_tokens", self.max_tokens, 1)
        _at_least("n", self.n, 1)
        _at_least("min_tokens", self.min_tokens, 0)
        if self.min_tokens > self.max_tokens:
            raise InvalidRequestError("min_tokens must not exceed max_tokens", param="min_tokens")
        if self.logprobs is not None:
            _in_range("logprobs", self.logprobs, 0, 20)
        if any(not stop for stop in self.stop):
            raise InvalidRequestError("stop strings must not be empty", param="stop")
        for bias in self.logit_bias.values():
            _in_range("logit_bias", bias, -100.0, 100.0)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def edits_logits(self) -> bool:
        """Does anything change the model's logits before the draw? (Besides min_tokens, which does so for a while.)"""
        return bool(self.logit_bias) or self.penalizes_tokens

    @property
    def penalizes_tokens(self) -> bool:
        """Does a draw depend on the tokens that were drawn before, besides through the model?"""
        penalties = self.presence_penalty, self.frequency_penalty
        return self.repetition_penalty != 1.0 or penalties != (0.0, 0.0)


def _in_range(param: str, value: float, low: float, high: float, *, exclude_low: bool = False) -> None:
    if math.isnan(value) or not low <= value <= high or (exclude_low and value == low):
        bracket = "(" if exclude_low else "["
        raise InvalidRequestError(f"{param} must be in {bracket}{low:g}, {high:g}], got {value}", param=param)


def _at_least(param: str, value: int, low: int) -> None:
    if value < low:
        raise InvalidRequestError(f"{param} must be at least {low}, got {value}", param=param)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What to load and how much of it to run at once.

    `model`: hub id, local folder, GGUF file, `smollm2`, or `echo` (`echo?step_ms=20` paces its steps).
    `max_num_seqs`: rows in flight. `max_num_batched_tokens`: tokens in one packed row, prefill chunks included.
    `scheduling_interval`: steps from one admission of newcomers to the next; an idle engine admits at once.
    `target_tpot_ms`: most time per token; the rows and prompt tokens of a step keep to it. None: throughput.
    `target_ttft_ms`: time to the first token; up to it a newcomer's prompt may wait for others' tokens.
    `kv_cache_tokens`: size of the paged KV pool in tokens; None sizes it from free memory.
    `max_model_len`: longest prompt plus completion, in tokens; None takes the model's own limit.
    `num_threads`: threads of the model's operations on a CPU; None takes the physical cores the process may use.
    `cache_dir`: where dequantized GGUF files, the CPU library and step times are kept; None is ~/.cache/tokenmill.
    `attention_backend`: auto takes cpu (C++, built on first use) on a CPU, triton on a CUDA device, and sdpa where that
    is not to be had.
    `tier`: 0 runs transformers' modules as they are, 1 puts faster ones in their place where they compute the same;
    auto is 1 on a CPU.
    `quantization`: of the linear layers, on a CPU: w8a8 (int8 weights, activations rounded to 8 bits for each token)
    or w8a16 (int8 weights alone). Other results than the unquantized model's, on purpose.
    `overlap`: launch a step before the one before it is read; the results are the same. auto does on a GPU, unless
    several processes share the model.
    `tensor_parallel_size`: processes that share the model, all started by torchrun. On rank 0 an Engine is as ever; on
    the others its constructor serves rank 0 and then ends the process.
    `cuda_graphs`: capture decode steps on a GPU, where they are launched ahead and the attention backend allows it.
    `compile_layers`: let torch.compile make each decoder layer faster; takes minutes at the start.
    `gpu_memory_utilization`: the share of the device's memory that weights, activations and the KV pool may take.
    """

    model: str = "smollm2"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    scheduling_interval: int = 1
    target_tpot_ms: float | None = None
    target_ttft_ms: float | None = None
    max_model_len: int | None = None
    kv_cache_tokens: int | None = None
    enable_prefix_caching: bool = True
    attention_backend: Literal["auto", "cpu", "triton", "sdpa", "reference"] = "auto"
    tier: Literal["auto", 0, 1] = "auto"
    num_threads: int | None = None
    quantization: Literal["w8a8", "w8a16"] | None = None
    overlap: Literal["auto"] | bool = "auto"
    tensor_parallel_size: int = 1
    cuda_graphs: bool = True
    compile_layers: bool = False
    gpu_memory_utilization: float = 0.9
    trust_remote_code: bool = False
    cache_dir: str | None = None

    @property
    def cache_folder(self) -> Path:
        """Where dequantized weights, the CPU library and step times are kept."""
        return Path(self.cache_dir).expanduser() if self.cache_dir else Path.home() / ".cache" / "tokenmill"

    def __post_init__(self) -> None:
        for name in AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EngineError(f"{name} must be at least 1, got {value}")
        for name in ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise EngineError(f"{name} must be above 0, got {value}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise EngineError(
                f"gpu_memory_utilization must be above 0 and at most 1, got {self.gpu_memory_utilization}"
            )


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural-log probabilities at one position: the chosen token's, and the likeliest tokens' as (id, logprob)."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request, over all its choices."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class RowError:
    """Why one row failed; its neighbours are untouched."""

    code: str
    message: str

    @classmethod
    def of(cls, error: Exception) -> "RowError":
        """What the runner raised for this row alone."""
        code = "out_of_memory" if is_out_of_memory(error) else "engine_error"
        return cls(code, f"{type(error).__name__}: {error}")


def is_out_of_memory(error: Exception) -> bool:
    """By name: torch raises a class of its own, and torch is not imported here."""
    return isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


class TokenEvent(NamedTuple):
    """News of one choice of one request after one step. (A named tuple: hundreds are made in each step.)

    `token_ids[i]` has the text `texts[i]`: joined, they are the delta. A token is told only when its text is final
    (whole UTF-8, no possible prefix of a stop string), so an event may hold several tokens or, when a choice ends
    without a new one, none. `offset` counts the tokens of this choice told before this event.
    `finish_reason` is set on a choice's last event, `usage` on the request's last event and nowhere else.
    """

    request_id: str
    index: int  # type: ignore[assignment]  # of the choice; nobody searches an event with tuple.index
    offset: int
    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    logprobs: tuple[Logprobs, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: RowError | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)


@dataclass(frozen=True, slots=True)
class ResumedChoice:
    """What an earlier worker already told of one choice; a continued request tells nothing of it again."""

    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One request as the engine takes it. `priority`: lower runs first. `resume`: one entry per choice, or empty."""

    request_id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    priority: int = 0
    resume: tuple[ResumedChoice, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished choice. `token_ids` include the stop token, `text` does not and ends before a stop string."""

    index: int
    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    logprobs: list[Logprobs]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """One finished request. The properties speak of the first choice; `choices` has all n."""

    request_id: str
    prompt_token_ids: list[int]
    choices: list[Completion]
    usage: Usage
    error: RowError | None = None

    @property
    def token_ids(self) -> list[int]:
        return self.choices[0].token_ids

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def finish_reason(self) -> FinishReason:
        return self.choices[0].finish_reason

    @property
    def logprobs(self) -> list[Logprobs]:
        return self.choices[0].logprobs


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the engine can admit right now: free rows, and tokens' worth of free pages (0 rows: nothing)."""

    num_rows: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """One immutable look at the engine; the source of metrics, `queue --json` and tests. Counters only grow.

    The limits are what the last step was allowed, and step times smoothed over some ten steps: 0 before the first, and
    the predicted one also without target_tpot_ms, where nothing is predicted. `decode_step_ms`: rows, and how long a
    step of so many takes that has no prompt in it, for each doubling of rows that was seen.
    """

    num_waiting: int
    num_running: int
    num_steps: int
    num_free_pages: int
    num_pages: int
    num_prefill_tokens: int
    num_decode_tokens: int
    num_drawn_tokens: int
    num_cached_tokens: int
    num_preemptions: int
    num_finished: int
    num_batched_tokens_limit: int = 0
    num_rows_limit: int = 0
    observed_step_ms: float = 0.0
    predicted_step_ms: float = 0.0
    decode_step_ms: tuple[tuple[float, float], ...] = ()

    @property
    def kv_cache_usage(self) -> float:
        """Share of the pages in use, 0 to 1. Those that only the prefix cache holds are free."""
        return 1 - self.num_free_pages / self.num_pages if self.num_pages else 0.0

    @property
    def num_prompt_tokens(self) -> int:
        """Looked up in the prefix cache, found or not; those of a preempted row count anew."""
        return self.num_prefill_tokens + self.num_cached_tokens
