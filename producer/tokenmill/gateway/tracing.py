"""A span of each HTTP request that generates, by OpenTelemetry's HTTP conventions. Nobody's path or prompt is in it.

What it submits carries the span on: the worker's spans hang below it. Imported only when tracing is asked for.
"""

from opentelemetry import context as contexts
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SERVICE = "tokenmill-gateway"  # unless OTEL_SERVICE_NAME says otherwise
API = "/v1/"  # probes and pages are not traced


def provider_from_environment() -> TracerProvider:
    """Sampler, exporter's address and the service's name by OpenTelemetry's own OTEL_* variables."""
    resource = Resource({SERVICE_NAME: SERVICE}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Traced:
    """ASGI: the application, with a span around each request of it; of a stream, until that ends."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self._app = app
        self._tracer = provider.get_tracer("tokenmill.gateway")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(API):
            await self._app(scope, receive, send)
            return
        span = self._start(scope)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                _tell_answer(span, scope, message["status"])
            await send(message)

        token = contexts.attach(set_span_in_context(span))
        try:
            await self._app(scope, receive, sending)
        finally:
            contexts.detach(token)
            span.end()

    def _start(self, scope: Scope) -> Span:
        """Below the client's span, if it told one."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        return self._tracer.start_span(
            scope["method"],
            context=TraceContextTextMapPropagator().extract(headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"]},
        )


def _tell_answer(span: Span, scope: Scope, status: int) -> None:
    route = getattr(scope.get("route"), "path", None)
    if route is not None:
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))
