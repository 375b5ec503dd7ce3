"""What a gateway tells Prometheus: its own requests, and the queue as the server sees it. Knows no route's content.

Labels are bounded: a route is the pattern it was declared with, a status a number, a lane one of five.
"""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenmill.wire.keys import MAX_DEPTH, Lane
from tokenmill.wire.store import QueueStatistics

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
NO_ROUTE = "none"  # nobody may make a label of a path

QUEUE_METRICS = {
    "tokenmill_queue_up": "1 while the queue's server answers",
    "tokenmill_queue_backlog": "requests that wait for a worker, by lane",
    "tokenmill_queue_in_flight": "requests that a worker holds, by lane",
    "tokenmill_queue_unfinished": "requests without their last word: waiting or held; what to scale workers by",
    "tokenmill_queue_oldest_age_seconds": "age of the oldest entry, by lane; 0 when it is empty",
    "tokenmill_queue_scheduled": "requests that wait for their time",
    "tokenmill_queue_dead_letters": "dead letters that nobody has dealt with",
    "tokenmill_queue_workers": "workers whose lease runs",
    "tokenmill_queue_lane_limit": "entries on one lane at which a submission is refused",
}


class GatewayMetrics:
    """One for each application, with a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "tokenmill_http_requests",
            "requests answered to the end, by route and status",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.duration = Histogram(
            "tokenmill_http_request_duration_seconds",
            "from a request's arrival to the end of its answer",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_byte = Histogram(
            "tokenmill_http_time_to_first_byte_seconds",
            "from a request's arrival to the first byte of its answer's body",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_progress = Gauge(
            "tokenmill_http_requests_in_progress", "requests at work, streams included", registry=self.registry
        )
        self.streams = Gauge("tokenmill_http_streams_open", "event streams that are open", registry=self.registry)

    def text(self, queue: str, statistics: QueueStatistics | None) -> bytes:
        """In Prometheus' format. None: the queue's server did not answer."""
        looked = CollectorRegistry()
        looked.register(QueueCollector(queue, statistics))
        return generate_latest(self.registry) + generate_latest(looked)


class QueueCollector(Collector):
    """One look at a queue, as metrics."""

    def __init__(self, queue: str, statistics: QueueStatistics | None) -> None:
        self._queue = queue
        self._statistics = statistics

    def collect(self) -> Iterator[Family]:
        yield self._one("up", float(self._statistics is not None))
        if self._statistics is None:
            return
        now = self._statistics
        yield self._by_lane("backlog", {lane: now.lanes[lane].backlog for lane in Lane})
        yield self._by_lane("in_flight", {lane: now.lanes[lane].in_flight for lane in Lane})
        yield self._by_lane("oldest_age_seconds", {lane: now.lanes[lane].oldest_age_s or 0.0 for lane in Lane})
        yield self._one("unfinished", now.depth + now.in_flight)
        yield self._one("scheduled", now.scheduled)
        yield self._one("dead_letters", now.dead_letters)
        yield self._one("workers", sum(worker.lease_left_s > 0 for worker in now.workers))
        yield self._one("lane_limit", MAX_DEPTH)

    def _one(self, name: str, value: float) -> Family:
        full = f"tokenmill_queue_{name}"
        family = GaugeMetricFamily(full, QUEUE_METRICS[full], labels=["queue"])
        family.add_metric([self._queue], value)
        return family

    def _by_lane(self, name: str, values: dict[Lane, float]) -> Family:
        full = f"tokenmill_queue_{name}"
        family = GaugeMetricFamily(full, QUEUE_METRICS[full], labels=["queue", "lane"])
        for lane, value in values.items():
            family.add_metric([self._queue, lane.name.lower()], value)
        return family


class Measured:
    """ASGI: the application, with every request of it counted and timed."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        one = _Request(self._metrics, scope)

        async def sending(message: Message) -> None:
            one.note(message)
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            one.end()


class _Request:
    """One request on its way."""

    def __init__(self, metrics: GatewayMetrics, scope: Scope) -> None:
        self._metrics = metrics
        self._scope = scope
        self._began_s = time.perf_counter()
        self._status = 500  # unless an answer says otherwise
        self._has_body = self._is_stream = False
        metrics.in_progress.inc()

    @property
    def route(self) -> str:
        """Known once the request was routed."""
        return str(getattr(self._scope.get("route"), "path", NO_ROUTE))

    def note(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._is_stream = (b"content-type", b"text/event-stream; charset=utf-8") in message["headers"]
            self._metrics.streams.inc(self._is_stream)
        elif message.get("body") and not self._has_body:
            self._has_body = True
            self._metrics.first_byte.labels(self.route).observe(time.perf_counter() - self._began_s)

    def end(self) -> None:
        self._metrics.in_progress.dec()
        self._metrics.streams.dec(self._is_stream)
        self._metrics.duration.labels(self.route).observe(time.perf_counter() - self._began_s)
        method = self._scope["method"] if self.route != NO_ROUTE else NO_ROUTE
        self._metrics.requests.labels(method, self.route, str(self._status)).inc()
