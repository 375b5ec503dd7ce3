"""A trace of each request: queue, prefill, decode, publish, as OpenTelemetry spans by its GenAI conventions.

A request's spans are made at once when it has ended, from the times that it brings along: nothing is spent while it
runs. They hang below the producer's span, which came with the request as `traceparent`. Spans hold no prompt and no
answer. opentelemetry is imported by `tracing_from_environment` alone.
"""

import time
from typing import TYPE_CHECKING, NamedTuple

from tokenmill_worker.engine.api import EngineError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from tokenmill_worker.queue.outbox import Ending

SERVICE = "tokenmill-worker"  # unless OTEL_SERVICE_NAME says otherwise


class _Phase(NamedTuple):
    """Server ms since the epoch."""

    name: str
    begin_ms: float
    end_ms: float


class Tracing:
    """`model`: as the spans name it. `provider` decides what is sampled and where spans go."""

    def __init__(self, provider: "TracerProvider", *, model: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("tokenmill_worker")
        self._model = model

    def ended(self, ending: "Ending") -> None:
        """Its last word is with the server now."""
        from opentelemetry.trace import SpanKind

        phases = _phases(ending, now_ms=time.time() * 1000)
        span = self._tracer.start_span(
            f"chat {self._model}",
            context=_parent(ending),
            kind=SpanKind.CONSUMER,
            attributes=_attributes(ending, self._model),
            start_time=_ns(phases[0].begin_ms),
        )
        if span.is_recording():
            _tell_error(span, ending)
            for phase in phases:
                self._tell_phase(span, phase)
        span.end(_ns(max(phase.end_ms for phase in phases)))

    def _tell_phase(self, span: "Span", phase: _Phase) -> None:
        from opentelemetry.trace import set_span_in_context

        child = self._tracer.start_span(phase.name, context=set_span_in_context(span), start_time=_ns(phase.begin_ms))
        child.end(_ns(phase.end_ms))

    def close(self) -> None:
        """Sends what is not sent yet."""
        self._provider.shutdown()


def tracing_from_environment(*, model: str) -> Tracing:
    """Sampler, exporter's address and the service's name by OpenTelemetry's own OTEL_* variables."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise EngineError("tracing needs OpenTelemetry: pip install 'tokenmill[tracing]'") from error
    resource = Resource({SERVICE_NAME: SERVICE}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider, model=model)


def _phases(ending: "Ending", *, now_ms: float) -> list[_Phase]:
    """Those that the request came to, in order. `now_ms` is this machine's clock: no phase ends before it began."""
    accepted_ms, timings = ending.tenure.accepted_ms, ending.timings
    marks = [("prefill", timings.first_token), ("decode", timings.total)]
    phases = [_Phase("queue", accepted_ms, max(accepted_ms, ending.tenure.begun_ms))]
    for name, after_ms in marks:
        if after_ms is not None:
            begin_ms = phases[-1].end_ms
            phases.append(_Phase(name, begin_ms, max(begin_ms, accepted_ms + after_ms)))
    return [*phases, _Phase("publish", phases[-1].end_ms, max(phases[-1].end_ms, now_ms))]


def _attributes(ending: "Ending", model: str) -> "dict[str, AttributeValue]":
    """By https://opentelemetry.io/docs/specs/semconv/gen-ai/, and what is ours below `tokenmill.`."""
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "tokenmill",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": ending.tenure.request_id,
        "gen_ai.response.finish_reasons": (ending.finish_reason,),
        "gen_ai.usage.input_tokens": ending.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": ending.usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": ending.usage.cached_tokens,
        "tokenmill.worker": ending.tenure.worker,
        "tokenmill.lane": ending.tenure.lane.value,
        "tokenmill.fence": ending.tenure.fence,
    }
    if ending.admission is not None:
        params = ending.admission.request.params
        attributes["gen_ai.request.max_tokens"] = params.max_tokens
        attributes["gen_ai.request.temperature"] = params.temperature
        attributes["gen_ai.request.top_p"] = params.top_p
        attributes["gen_ai.request.choice.count"] = params.n
    return attributes


def _tell_error(span: "Span", ending: "Ending") -> None:
    if ending.error_code is None:
        return
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", ending.error_code)
    span.set_status(Status(StatusCode.ERROR))


def _parent(ending: "Ending") -> "Context | None":
    """The producer's span, if it told one."""
    if ending.traceparent is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": ending.traceparent})


def _ns(at_ms: float) -> int:
    return int(at_ms * 1_000_000)
