"""A worker's figures over HTTP, for Prometheus: read when asked for, so that nothing is spent in between.

The one module of the worker that knows prometheus_client; its server has a thread of its own.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from tokenmill_worker.engine.api import EngineError
from tokenmill_worker.metrics import WorkerStatistics
from tokenmill_worker.observe.catalogue import DISTRIBUTIONS, ENDED, INFO, METRICS, PREFIX, Distribution, Metric
from tokenmill_worker.observe.measures import Measures
from tokenmill_worker.worker import Worker

TOLD = ("device", "dtype", "attention_backend", "quantization", "max_num_seqs", "max_model_len", "fingerprint")


class WorkerCollector(Collector):
    """`labels` are on every metric: the model and the queue, of which a worker has one each."""

    def __init__(
        self, worker: Worker, measures: Measures, labels: Mapping[str, str], identity: Mapping[str, str]
    ) -> None:
        self._worker = worker
        self._measures = measures
        self._names = tuple(labels)
        self._labels = tuple(labels.values())
        self._identity = {name: identity[name] for name in TOLD if name in identity}

    def collect(self) -> Iterator[Family]:
        now = WorkerStatistics.of(self._worker)
        for metric in METRICS:
            yield self._plain(metric, metric.read(now))
        for distribution in DISTRIBUTIONS:
            yield self._distribution(distribution)
        yield self._ended()
        yield self._info()

    def _plain(self, metric: Metric, value: float) -> Family:
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(PREFIX + metric.name, metric.help, labels=self._names)
        family.add_metric(self._labels, value)
        return family

    def _distribution(self, distribution: Distribution) -> Family:
        histogram = distribution.read(self._measures)
        family = HistogramMetricFamily(PREFIX + distribution.name, distribution.help, labels=self._names)
        buckets = [
            ("+Inf" if math.isinf(bound) else str(bound), float(count)) for bound, count in histogram.cumulative()
        ]
        family.add_metric(self._labels, buckets, histogram.sum)
        return family

    def _ended(self) -> Family:
        family = CounterMetricFamily(PREFIX + ENDED.name, ENDED.help, labels=[*self._names, "finish_reason"])
        for reason, count in self._measures.num_ended.items():
            family.add_metric([*self._labels, reason], count)
        return family

    def _info(self) -> Family:
        family = GaugeMetricFamily(PREFIX + INFO.name, INFO.help, labels=[*self._names, *self._identity])
        family.add_metric([*self._labels, *self._identity.values()], 1.0)
        return family


@contextmanager
def metrics_server(collector: Collector, *, host: str, port: int) -> Iterator[int]:
    """Serves /metrics until the block ends; gives the port, which for 0 is a free one."""
    registry = CollectorRegistry()
    registry.register(collector)
    for about_process in (ProcessCollector, PlatformCollector, GCCollector):
        about_process(registry=registry)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise EngineError(
            f"metrics cannot be served on {host}:{port}: {error.strerror}; choose another --metrics-port"
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
