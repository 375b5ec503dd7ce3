"""The command `tokenmill worker`, and the one place where a worker is put together from its parts.

Apart from the wire contract it knows one thing of the producer's package: the embedded server, and only when asked.
"""

import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType

import click
from redis.exceptions import RedisError
from tokenmill.wire.errors import TokenmillError
from tokenmill.wire.keys import Keys, all_keys
from tokenmill.wire.store import Store, Transitions, connect, hide_password

from tokenmill_worker import launch
from tokenmill_worker.engine.api import EngineConfig, EngineError
from tokenmill_worker.engine.engine import Engine
from tokenmill_worker.metrics import WorkerStatistics
from tokenmill_worker.observe.observers import Observers
from tokenmill_worker.observe.watch import NOBODY, Watch
from tokenmill_worker.painter import EngineEasel
from tokenmill_worker.queue.consumer import BLOCK_S, Consumer
from tokenmill_worker.queue.intake import Intake
from tokenmill_worker.queue.lanes import Lanes
from tokenmill_worker.queue.lease import Lease, fresh_name
from tokenmill_worker.queue.partitions import Consumers, Leases, Part, Publishers, Site, Together, engine_id
from tokenmill_worker.queue.post import ServerPost
from tokenmill_worker.queue.publisher import Publisher
from tokenmill_worker.queue.quarantine import PATIENCE_S, Quarantine
from tokenmill_worker.queue.requests import RequestBuilder, ServedModel
from tokenmill_worker.queue.sharing import GatedIntake, Share, SharingLanes
from tokenmill_worker.queue.spelling import Speller
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
@click.option("--partitions", type=int, metavar="P", help="Of the queue; the same for all.")
@click.option("--burst", is_flag=True, default=None, help="End when the queue is empty.")
@click.option("--dtype", metavar="D", help="auto, bfloat16, float16 or float32.")
@click.option("--device", metavar="D", help="auto, cpu or cuda.")
@click.option("--max-num-seqs", type=int, metavar="N", help="Rows in flight.")
@click.option("--max-num-batched-tokens", type=int, metavar="N", help="Tokens of one step.")
@click.option("--quantization", metavar="Q", help="w8a8 or w8a16: int8 on a CPU.")
@click.option("--tensor-parallel-size", type=int, metavar="N", help="Processes (GPUs) that share the model.")
@click.option("--served-model-name", metavar="NAME", help="A further name that requests may ask for.")
@click.option("--metrics-port", type=int, metavar="PORT", help="Serve Prometheus metrics there, at /metrics.")
@click.option("--tracing", is_flag=True, default=None, help="Send OpenTelemetry spans; see docs/observability.md.")
def worker(config: Path | None, **flags: object) -> None:
    """Serve a queue with a model until SIGTERM or Ctrl-C, then drain: finish what fits, hand the rest back.

    Every setting is also a key of the --config file and a variable TOKENMILL_<KEY>; flags win over both.

    \b
    Example:
      tokenmill worker --model smollm2 --redis redis://localhost:6379/0

    Exit codes: 0 drained, 1 failed or left requests to a takeover, 2 wrong usage.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        settings = WorkerSettings.read(config, given)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    _log_to_stderr(settings.log_level)
    rank = launch.rank_of(os.environ) if settings.tensor_parallel_size > 1 else 0
    if rank is None:
        raise click.exceptions.Exit(launch.run(_same_worker(config, given), settings.tensor_parallel_size))
    try:
        with _server(settings) if rank == 0 else nullcontext(settings.redis_url) as url:
            is_drained = serve(settings, url)
    except (TokenmillError, EngineError, RedisError) as error:
        click.echo(f"tokenmill: {' '.join(str(error).split())}", err=True)
        raise click.exceptions.Exit(EXIT_FATAL) from None
    raise click.exceptions.Exit(0 if is_drained else EXIT_FATAL)


def _same_worker(config: Path | None, flags: Mapping[str, object]) -> list[str]:
    """This command again, for a process of its own."""
    options = [f"--config={config}"] if config is not None else []
    for name, value in flags.items():
        option = "--redis" if name == "redis_url" else "--" + name.replace("_", "-")
        options.append(option if value is True else f"{option}={value}")
    return [sys.executable, "-m", "tokenmill.cli", "worker", *options]


def serve(settings: WorkerSettings, url: str) -> bool:
    """Load the model and work until told to stop. False: something was left to a takeover.

    Of the processes that share a model only the first comes past the loading; the others end in there.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    log.info("loading %s", settings.model)
    engine = Engine(engine_config(settings))
    try:
        observers = Observers.asked_for(settings)
        serving = assemble(engine, settings, url, watch=observers.watch)
        gc.freeze()  # what is there now stays: no collection needs to look at it again
        with observers.at_work(serving, settings, engine.computing), _stopped_by_signals(serving):
            serving.run()
    finally:
        engine.close()
    return not len(serving.holdings)


def assemble(
    engine: Engine,
    settings: WorkerSettings,
    url: str,
    *,
    quarantine_patience_s: float = PATIENCE_S,
    watch: Watch = NOBODY,
) -> Worker:
    """A worker around a loaded engine; nothing is sent to the server yet."""
    process = fresh_name()

    def describe() -> dict[str, str]:
        return {**_identity(settings, engine, process), **WorkerStatistics.of(serving).fields()}

    sites = [Site(keys) for keys in all_keys(settings.queue, settings.partitions)]
    together = Together(sites)
    parts = [
        _part(engine, settings, url, site, together, describe=describe, watch=watch, patience_s=quarantine_patience_s)
        for site in sites
    ]
    serving = _worker(engine, parts, sites, together, drain_timeout_s=settings.drain_timeout_s, watch=watch)
    return serving


def _worker(
    engine: Engine,
    parts: Sequence[Part],
    sites: Sequence[Site],
    together: Together,
    *,
    drain_timeout_s: float,
    watch: Watch,
) -> Worker:
    """One partition's parts as they are; those of several, gathered."""
    new_worker = partial(Worker, engine, drain_timeout_s=drain_timeout_s, on_step=watch.stepped)
    if len(parts) == 1:
        part, holdings = parts[0], sites[0].holdings
        return new_worker(part.consumer, part.publisher, part.lease, holdings)
    return new_worker(
        Consumers([part.consumer for part in parts], together.ready),
        Publishers([part.publisher for part in parts], together.holdings),
        Leases([part.lease for part in parts]),
        together.holdings,
    )


def _part(
    engine: Engine,
    settings: WorkerSettings,
    url: str,
    site: Site,
    together: Together,
    *,
    describe: Callable[[], dict[str, str]],
    watch: Watch,
    patience_s: float,
) -> Part:
    """What serves one partition, over three connections of its own."""
    keys, transitions = site.keys, Transitions(site.keys)
    # No retries: a reply lost behind our back would not be audited.
    reading = Store(connect(url, key=keys.tag, block_s=BLOCK_S, retries=0))
    publisher = Publisher(
        ServerPost(Store(connect(url, key=keys.tag, retries=0)), transitions),
        site.holdings,
        now_ms=site.clock.now_ms,
        settle_timeout_s=settings.lease_ttl_s,
        flush_interval_s=settings.flush_interval_ms / 1000,
        first_tokens=together.first_tokens,
        on_end=watch.ended,
        spell=Speller(engine.tokenizer),
    )
    lease = Lease(
        Store(connect(url, key=keys.tag, retries=0)),
        transitions,
        site.holdings,
        ttl_s=settings.lease_ttl_s,
        stall_watch=StallWatch(engine.statistics, timeout_s=settings.stall_timeout_s),
        describe=describe,
        title=_title(settings, engine, url, keys),
        easel=EngineEasel(engine) if keys.partition == 0 else None,  # one batch, one picture
    )
    is_alone = keys.partitions == 1
    share = Share(together.ready, together.gate)
    lanes = Lanes(reading, keys) if is_alone else SharingLanes(reading, keys, share)
    intake = Intake(
        reading,
        transitions,
        lanes,
        builder=RequestBuilder(_served_model(settings, engine), partial(engine_id, keys)),
        publisher=publisher,
        holdings=site.holdings,
        clock=site.clock,
        fingerprint=engine.fingerprint,
    )
    consumer = Consumer(
        reading,
        transitions,
        lanes,
        intake if is_alone else GatedIntake(intake, together.gate),
        holdings=site.holdings,
        lease=lease,
        quarantine=Quarantine(reading, transitions, together.gate, patience_s=patience_s),
        ready=None if is_alone else share,
        is_bursting=settings.burst,
    )
    return Part(consumer, publisher, lease)


def engine_config(settings: WorkerSettings) -> EngineConfig:
    return EngineConfig(
        model=settings.model,
        dtype=settings.dtype,
        device=settings.device,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        scheduling_interval=settings.scheduling_interval,
        target_tpot_ms=settings.target_tpot_ms,
        target_ttft_ms=settings.target_ttft_ms,
        max_model_len=settings.max_model_len,
        kv_cache_tokens=settings.kv_cache_tokens,
        enable_prefix_caching=settings.enable_prefix_caching,
        attention_backend=settings.attention_backend,
        tier=settings.tier,
        num_threads=settings.num_threads,
        quantization=settings.quantization,
        overlap=settings.overlap,
        tensor_parallel_size=settings.tensor_parallel_size,
        cuda_graphs=settings.cuda_graphs,
        compile_layers=settings.compile_layers,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        trust_remote_code=settings.trust_remote_code,
        cache_dir=settings.cache_dir,
    )


def _served_model(settings: WorkerSettings, engine: Engine) -> ServedModel:
    names = {settings.model, settings.model.partition("?")[0], settings.served_model_name or settings.model}
    return ServedModel(names, engine.tokenizer, engine.default_params, engine)


def _identity(settings: WorkerSettings, engine: Engine, process: str) -> dict[str, str]:
    """What does not change while the worker runs. `process`: the same for all its leases."""
    parts = {"process": process, "partitions": str(settings.partitions)} if settings.partitions > 1 else {}
    return {
        **parts,
        **engine.computing,
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


def _title(settings: WorkerSettings, engine: Engine, url: str, keys: Keys) -> str:
    part = f", partition {keys.partition} of {keys.partitions}" if keys.partitions > 1 else ""
    return (
        f"model {settings.model}, device {engine.device}, queue {settings.queue}{part}, "
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
