"""From the settings to what watches a worker. Imports an exporter only when it is asked for."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tokenmill_worker.engine.api import EngineError
from tokenmill_worker.observe.measures import Measures
from tokenmill_worker.observe.tracing import Tracing, tracing_from_environment
from tokenmill_worker.observe.watch import EndWatch, StepWatch, Watch
from tokenmill_worker.settings import WorkerSettings
from tokenmill_worker.worker import Worker

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Observers:
    """None: nobody asked for it."""

    measures: Measures | None = None
    tracing: Tracing | None = None

    @classmethod
    def asked_for(cls, settings: WorkerSettings) -> "Observers":
        """Raises EngineError that names the extra to install."""
        measures = Measures() if settings.metrics_port is not None else None
        return cls(measures, tracing_from_environment(model=served_name(settings)) if settings.tracing else None)

    @property
    def watch(self) -> Watch:
        stepped: tuple[StepWatch, ...] = (self.measures.stepped,) if self.measures is not None else ()
        ended: tuple[EndWatch, ...] = (self.measures.ended,) if self.measures is not None else ()
        if self.tracing is not None:
            ended += (self.tracing.ended,)
        return Watch(stepped, ended)

    @contextmanager
    def at_work(self, worker: Worker, settings: WorkerSettings, computing: Mapping[str, str]) -> Iterator[int | None]:
        """Until the block ends: then what is not sent yet is. Gives the port of the metrics."""
        port = None
        with ExitStack() as stack:
            if self.measures is not None:
                identity = {**computing, "device": worker.engine.device, "fingerprint": worker.engine.fingerprint}
                port = stack.enter_context(_metrics(worker, self.measures, settings, identity))
            if self.tracing is not None:
                stack.callback(self.tracing.close)
            yield port


@contextmanager
def _metrics(
    worker: Worker, measures: Measures, settings: WorkerSettings, identity: Mapping[str, str]
) -> Iterator[int]:
    try:
        from tokenmill_worker.observe import prometheus
    except ImportError as error:
        raise EngineError("metrics need prometheus_client: pip install 'tokenmill[worker]'") from error
    labels = {"model_name": served_name(settings), "queue": settings.queue}
    collector = prometheus.WorkerCollector(worker, measures, labels, identity)
    with prometheus.metrics_server(collector, host=settings.metrics_host, port=settings.metrics_port or 0) as port:
        log.info("metrics at http://%s:%d/metrics", settings.metrics_host, port)
        yield port


def served_name(settings: WorkerSettings) -> str:
    """As requests and people call the model."""
    return settings.served_model_name or settings.model
