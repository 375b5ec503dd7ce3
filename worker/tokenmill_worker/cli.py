"""The command `tokenmill worker`, and the one place where a worker is put together from its parts.

Apart from the wire contract it knows one thing of the producer's package: the embedded server, and only when asked.
"""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
from redis.exceptions import RedisError
from tokenmill.wire.errors import TokenmillError
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import Store, Transitions, connect, hide_password

from tokenmill_worker.engine.api import EngineConfig, EngineError
from tokenmill_worker.engine.engine import Engine
from tokenmill_worker.metrics import WorkerStatistics
from tokenmill_worker.queue.clock import ServerClock
from tokenmill_worker.queue.consumer import BLOCK_S, Consumer
from tokenmill_worker.queue.holdings import Holdings
from tokenmill_worker.queue.intake import Intake
from tokenmill_worker.queue.lanes import Lanes
from tokenmill_worker.queue.lease import Lease
from tokenmill_worker.queue.post import ServerPost
from tokenmill_worker.queue.publisher import Publisher
from tokenmill_worker.queue.quarantine import PATIENCE_S, Quarantine
from tokenmill_worker.queue.requests import RequestBuilder, ServedModel
from tokenmill_worker.queue.stall import StallWatch
from tokenmill_worker.settings import SettingsError, WorkerSettings
from tokenmill_worker.worker import Worker

SWITCH_INTERVAL_S = 0.001  # a thread that hears from the server waits so long for a busy engine's (Python: 5 ms)
EXIT_FATAL = 1
EXIT_INTERRUPTED = 130  # as shells count it: 128 + SIGINT

log = logging.getLogger("tokenmill_worker")


@click.command()
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="TOML; see configs/worker.toml.")
@click.option("--model", metavar="M", help="Hub id, local folder, GGUF file, smollm2, or echo (a fake model).")
@click.option(
    "--redis",
    "redis_url",
    metavar="URL",
    help="redis[s][+sentinel|+cluster]://, unix://, or embedded.",
)
@click.option("--queue", metavar="NAME", help="The queue's name.")
@click.option("--burst", is_flag=True, default=None, help="End when the queue is empty.")
@click.option("--dtype", metavar="D", help="auto, bfloat16, float16 or float32.")
@click.option("--device", metavar="D", help="auto, cpu or cuda.")
@click.option("--max-num-seqs", type=int, metavar="N", help="Rows in flight.")
@click.option("--max-num-batched-tokens", type=int, metavar="N", help="Tokens of one step.")
@click.option("--quantization", metavar="Q", help="Not there yet; refused.")
@click.option("--served-model-name", metavar="NAME", help="A further name that requests may ask for.")
def worker(config: Path | None, **flags: object) -> None:
    """Serve a queue with a model until SIGTERM or Ctrl-C, then drain: finish what fits, hand the rest back.

    Every setting is also a key of the --config file and a variable TOKENMILL_<KEY>; flags win over both.

    \b
    Example:
      tokenmill worker --model smollm2 --redis redis://localhost:6379/0

    Exit codes: 0 drained, 1 failed or left requests to a takeover, 2 wrong usage.
    """
    try:
        settings = WorkerSettings.read(config, {name: value for name, value in flags.items() if value is not None})
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    if settings.quantization is not None:
        raise click.UsageError(f"quantization {settings.quantization!r} does not exist yet: leave it out")
    _log_to_stderr(settings.log_level)
    try:
        with _server(settings) as url:
            is_drained = serve(settings, url)
    except (TokenmillError, EngineError, RedisError) as error:
        click.echo(f"tokenmill: {' '.join(str(error).split())}", err=True)
        raise click.exceptions.Exit(EXIT_FATAL) from None
    raise click.exceptions.Exit(0 if is_drained else EXIT_FATAL)


def serve(settings: WorkerSettings, url: str) -> bool:
    """Load the model and work until told to stop. False: something was left to a takeover."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    log.info("loading %s", settings.model)
    engine = Engine(_engine_config(settings))
    try:
        serving = assemble(engine, settings, url)
        with _stopped_by_signals(serving):
            serving.run()
    finally:
        engine.close()
    return not len(serving.holdings)


def assemble(
    engine: Engine, settings: WorkerSettings, url: str, *, quarantine_patience_s: float = PATIENCE_S
) -> Worker:
    """A worker around a loaded engine; nothing is sent to the server yet."""
    keys = Keys(settings.queue)
    transitions = Transitions(keys)
    clock = ServerClock()
    holdings = Holdings(clock.now_ms)
    # No retries: a reply lost behind our back would not be audited.
    reading = Store(connect(url, key=keys.tag, block_s=BLOCK_S, retries=0))
    publisher = Publisher(
        ServerPost(Store(connect(url, key=keys.tag, retries=0)), transitions),
        holdings,
        now_ms=clock.now_ms,
        settle_timeout_s=settings.lease_ttl_s,
    )
    lease = Lease(
        Store(connect(url, key=keys.tag, retries=0)),
        transitions,
        holdings,
        ttl_s=settings.lease_ttl_s,
        stall_watch=StallWatch(engine.statistics, timeout_s=settings.stall_timeout_s),
        describe=lambda: {**_identity(settings, engine), **WorkerStatistics.of(serving).fields()},
        title=_title(settings, engine, url),
    )
    lanes = Lanes(reading, keys)
    intake = Intake(
        reading,
        transitions,
        lanes,
        builder=RequestBuilder(_served_model(settings, engine)),
        publisher=publisher,
        holdings=holdings,
        clock=clock,
        fingerprint=engine.fingerprint,
    )
    consumer = Consumer(
        reading,
        transitions,
        lanes,
        intake,
        holdings=holdings,
        lease=lease,
        quarantine=Quarantine(reading, transitions, holdings, patience_s=quarantine_patience_s),
        is_bursting=settings.burst,
    )
    serving = Worker(engine, consumer, publisher, lease, holdings, drain_timeout_s=settings.drain_timeout_s)
    return serving


def _engine_config(settings: WorkerSettings) -> EngineConfig:
    return EngineConfig(
        model=settings.model,
        dtype=settings.dtype,
        device=settings.device,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_model_len=settings.max_model_len,
        kv_cache_tokens=settings.kv_cache_tokens,
        enable_prefix_caching=settings.enable_prefix_caching,
        attention_backend=settings.attention_backend,
        trust_remote_code=settings.trust_remote_code,
        cache_dir=settings.cache_dir,
    )


def _served_model(settings: WorkerSettings, engine: Engine) -> ServedModel:
    names = {settings.model, settings.model.partition("?")[0], settings.served_model_name or settings.model}
    return ServedModel(names, engine.tokenizer, engine.default_params, engine)


def _identity(settings: WorkerSettings, engine: Engine) -> dict[str, str]:
    """What does not change while the worker runs."""
    return {
        "model": settings.model,
        "served_model_name": settings.served_model_name or settings.model,
        "queue": settings.queue,
        "device": engine.device,
        "dtype": settings.dtype,
        "max_num_seqs": str(settings.max_num_seqs),
        "max_model_len": str(engine.max_model_len),
        "has_chat_template": "true" if engine.tokenizer.has_chat_template else "false",
        "fingerprint": engine.fingerprint,
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
    }


def _title(settings: WorkerSettings, engine: Engine, url: str) -> str:
    return (
        f"model {settings.model}, device {engine.device}, queue {settings.queue}, "
        f"{settings.max_num_seqs} rows, {hide_password(url)}"
    )


@contextmanager
def _server(settings: WorkerSettings) -> Iterator[str]:
    if settings.redis_url != "embedded":
        yield settings.redis_url
        return
    from tokenmill.embedded import embedded_server

    with embedded_server() as url:
        yield url


@contextmanager
def _stopped_by_signals(serving: Worker) -> Iterator[None]:
    """SIGTERM and SIGINT begin the drain; a second SIGINT ends the process at once."""
    is_stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if is_stopping.is_set() and number == signal.SIGINT:
            os._exit(EXIT_INTERRUPTED)
        is_stopping.set()
        # On a thread of its own: the handler may have interrupted the loop while that holds the lock `stop` takes.
        threading.Thread(target=serving.stop, name="tokenmill-stop", daemon=True).start()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log.setLevel(level.upper())
