"""The worker's settings: flags over environment over file over defaults, read once, then frozen. Knows no engine."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from tokenmill.wire.keys import MAX_PARTITIONS
from tokenmill.wire.store import DEFAULT_URL

ENV_PREFIX = "TOKENMILL_"


class SettingsError(Exception):
    """A setting is unknown or has a bad value; the message names it and where it came from."""


class WorkerSettings(BaseSettings):
    """Every field is a key of the configuration file, a variable TOKENMILL_<KEY>, and most of them a flag.

    The descriptions say what a value means and why the default is what it is; configs/worker.toml and the settings
    table in docs/operations.md are held to them by a test.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    model: str = Field("smollm2", description="hub id, local folder, GGUF file, `smollm2`, or `echo` (a fake model)")
    served_model_name: str | None = Field(None, description="a further name that requests may ask for")
    redis_url: str = Field(
        DEFAULT_URL,
        description="redis[s]://, unix://, redis[s]+sentinel:// or redis[s]+cluster://; `embedded` starts a server",
    )
    queue: str = Field("default", pattern=r"^[A-Za-z0-9._~-]{1,100}$", description="one queue serves one model")
    partitions: int = Field(
        1, ge=1, le=MAX_PARTITIONS, description="of the queue; the same for all its workers and clients"
    )

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="of weights and KV; auto takes what the model was saved in, where the device is fast at it"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU if there is one")
    quantization: Literal["w8a8", "w8a16"] | None = Field(
        None, description="int8 on a CPU: w8a8 is fastest, w8a16 nearest to the original; docs state what each costs"
    )
    tensor_parallel_size: int = Field(
        1, ge=1, le=64, description="processes, with a GPU each, that share one model; for one larger than a device"
    )
    max_num_seqs: int = Field(64, ge=1, le=4096, description="rows in flight; more give throughput, fewer latency")
    max_num_batched_tokens: int = Field(
        512, ge=1, le=1 << 20, description="tokens of one step; more make long prompts faster, fewer tokens steadier"
    )
    scheduling_interval: int = Field(
        1, ge=1, le=1024, description="steps from one admission of newcomers to the next; an idle engine admits at once"
    )
    target_tpot_ms: float | None = Field(
        None, gt=0, description="most time per token: rows and prompt tokens of a step keep to it; unset: throughput"
    )
    target_ttft_ms: float | None = Field(
        None, gt=0, description="time to the first token: up to it a newcomer's prompt may wait for others' tokens"
    )
    flush_interval_ms: float = Field(
        50.0,
        ge=1,
        le=10_000,
        description="how long tokens are collected, under load up to twice so long; a first one is told at once",
    )
    max_model_len: int | None = Field(
        None, ge=2, description="most tokens of prompt plus completion; the model's own if unset"
    )
    kv_cache_tokens: int | None = Field(None, ge=32, description="size of the KV pool; sized from free memory if unset")
    enable_prefix_caching: bool = Field(True, description="requests that begin alike share the KV of what is alike")
    attention_backend: Literal["auto", "cpu", "triton", "sdpa", "reference"] = Field(
        "auto",
        description="auto is cpu on a CPU with a C++ compiler, triton on a GPU, else sdpa; reference is for tests only",
    )
    tier: Literal["auto", 0, 1] = Field(
        "auto", description="0: transformers' modules as they are, 1: faster ones in their place; auto is 1 on a CPU"
    )
    overlap: Literal["auto"] | bool = Field(
        "auto",
        description="launch a step before the last one is read; same results; auto is on where a GPU has a whole model",
    )
    cuda_graphs: bool = Field(True, description="on a GPU, replay decode steps as captured graphs; same results")
    compile_layers: bool = Field(
        False, description="torch.compile each decoder layer (tier 0); minutes at the start for shorter steps"
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of a GPU's memory for weights, activations and the KV pool"
    )
    num_threads: int | None = Field(
        None, ge=1, description="threads of the model's operations on a CPU; one for each usable core if unset"
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with a hub model")
    cache_dir: str | None = Field(
        None, description="where converted GGUF files and the CPU library are kept; ~/.cache/tokenmill if unset"
    )

    burst: bool = Field(False, description="end when the queue is empty, instead of waiting for more")
    drain_timeout_s: float = Field(
        30.0, ge=0, description="on SIGTERM, seconds to finish what runs; the rest is handed back without loss"
    )
    lease_ttl_s: float = Field(
        15.0, ge=0.5, description="seconds of silence after which others take over; renewed every third of it"
    )
    stall_timeout_s: float = Field(
        120.0, gt=0, description="seconds without a step, with work at hand, after which the lease is given up"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="never shows prompts")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="serve Prometheus metrics there, at /metrics; 0 takes a free port; off if unset",
    )
    metrics_host: str = Field(
        "127.0.0.1", min_length=1, description="where metrics are served; 0.0.0.0 for a scraper on another machine"
    )
    tracing: bool = Field(
        False, description="send OpenTelemetry spans where OTEL_EXPORTER_OTLP_ENDPOINT says; needs the extra `tracing`"
    )

    @field_validator("tier", mode="before")
    @classmethod
    def _number(cls, tier: object) -> object:
        """The environment has no numbers."""
        return int(tier) if isinstance(tier, str) and tier.isdecimal() else tier

    @classmethod
    def read(cls, config: Path | None, flags: Mapping[str, object]) -> Self:
        """`flags` are those that were given. Raises SettingsError that names what is wrong, and where it stands."""
        file = _read_file(cls, config) if config is not None else {}
        environment = EnvSettingsSource(cls)()
        try:
            return cls(**{**file, **environment, **flags})
        except ValidationError as error:
            raise SettingsError(_explain(error, config, file, environment, flags)) from None


def _read_file(settings: type[WorkerSettings], config: Path) -> dict[str, object]:
    try:
        values = tomllib.loads(config.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {config}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config} is not TOML: {error}") from error
    unknown = sorted(values.keys() - settings.model_fields.keys())
    if unknown:
        raise SettingsError(f"{config}: unknown key {unknown[0]!r}; configs/worker.toml explains every key there is")
    return values


def _explain(
    error: ValidationError,
    config: Path | None,
    file: Mapping[str, object],
    environment: Mapping[str, object],
    flags: Mapping[str, object],
) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    source = str(config) if name in file else "settings"
    if name in environment:
        source = f"{ENV_PREFIX}{name.upper()}"
    if name in flags:
        source = "--" + name.replace("_", "-")
    return f"{source}: {name}: {first['msg'][0].lower()}{first['msg'][1:]}"
