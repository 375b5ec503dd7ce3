"""What a gateway is told when it starts: read by the command line from flags and TOKENMILL_*, nowhere else."""

from dataclasses import dataclass
from pathlib import Path

from tokenmill.wire.keys import MAX_BODY_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """`files`: the folder that files and batches share with `tokenmill bulk worker`; without it they are refused.

    `cors_origins`: whose pages may ask from a browser; none by default. `early_error_s`: how long a stream waits for
    its first word before it answers 200, so that what fails at once fails with a status of its own.

    `rq_url`: where batches are queued, when `redis_url` is a cluster. `requires_keys`: nobody without an API key.
    `head_timeout_s`: for the head of a request; `body_timeout_s`: for its body; a long one that comes has more.
    `linger_s`: how long what a refused client still sends is read.
    `tracing`: send OpenTelemetry spans, as its own OTEL_* variables say. `allow_admin`: the page at / may redrive dead
    letters.
    """

    redis_url: str = "redis://localhost:6379/0"
    queue: str = "default"
    partitions: int = 1
    host: str = "127.0.0.1"
    port: int = 8000
    files: Path | None = None
    cors_origins: tuple[str, ...] = ()
    keep_alive_s: float = 15.0
    early_error_s: float = 1.0
    rq_url: str | None = None
    requires_keys: bool = False
    max_body_bytes: int = 2 * MAX_BODY_BYTES
    max_file_bytes: int = 200 << 20
    max_batch_requests: int = 50_000
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    linger_s: float = 2.0
    tracing: bool = False
    allow_admin: bool = False
