"""One trace from the producer's span to the worker's, through a real queue; exported into memory."""

import subprocess
import sys
from collections.abc import Iterator, Sequence

import httpx2 as httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from tokenmill import Client
from tokenmill.tracing import current_traceparent
from tokenmill_worker.observe.tracing import Tracing
from tokenmill_worker.observe.watch import Watch

from tests.gateway.running import running_gateway
from tests.queue.harness import Bench, running_worker
from tests.support.waiting import wait_until

PHASES = ["queue", "prefill", "decode", "publish"]
PROMPT = "a secret of the customer's"


class Collected:
    """A provider, and what was exported through it."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.watch = Watch(ended=(Tracing(self.provider, model="echo").ended,))

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def wait(self, name: str) -> ReadableSpan:
        wait_until(lambda: any(span.name == name for span in self.spans), description=f"a span {name!r}")
        return next(span for span in self.spans if span.name == name)

    def children(self, parent: ReadableSpan) -> list[ReadableSpan]:
        def is_child(span: ReadableSpan) -> bool:
            return span.parent is not None and span.parent.span_id == parent.context.span_id

        return [span for span in self.spans if is_child(span)]


@pytest.fixture
def collected() -> Iterator[Collected]:
    one = Collected()
    yield one
    one.provider.shutdown()


def test_a_request_is_one_trace_from_its_producer_to_its_last_word(bench: Bench, collected: Collected) -> None:
    tracer = collected.provider.get_tracer("a service")
    with (
        running_worker(bench, watch=collected.watch),
        Client(bench.url, bench.keys.queue) as client,
        tracer.start_as_current_span("a visit"),
    ):
        client.submit(PROMPT, id="q-1", max_tokens=6, temperature=0.0).result(timeout=20)
        chat = collected.wait("chat echo")
    visit = collected.wait("a visit")
    assert chat.parent is not None
    assert chat.parent.span_id == visit.context.span_id
    assert {span.context.trace_id for span in collected.spans} == {visit.context.trace_id}
    assert [span.name for span in collected.children(chat)] == PHASES
    assert chat.attributes is not None
    assert chat.attributes["gen_ai.response.id"] == "q-1"
    assert chat.attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert chat.attributes["gen_ai.usage.input_tokens"] == len(PROMPT)
    assert chat.attributes["gen_ai.usage.output_tokens"] == 6
    assert chat.attributes["gen_ai.request.max_tokens"] == 6


def test_the_phases_follow_each_other_within_the_request(bench: Bench, collected: Collected) -> None:
    with running_worker(bench, watch=collected.watch, model="echo?step_ms=5"):
        bench.submit("q-1", max_tokens=6)
        bench.wait_result("q-1")
        chat = collected.wait("chat echo")
    phases = collected.children(chat)
    assert [phase.name for phase in phases] == PHASES
    ends = [phase.end_time for phase in phases]
    assert [phase.start_time for phase in phases] == [chat.start_time, *ends[:-1]]
    assert chat.end_time == ends[-1]
    assert all((phase.end_time or 0) >= (phase.start_time or 0) for phase in phases)


def test_an_http_request_is_one_trace_from_its_client_to_the_worker(
    bench: Bench, collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenmill.gateway.tracing.provider_from_environment", lambda: collected.provider)
    given = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    asked = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}
    with (
        running_worker(bench, watch=collected.watch),
        running_gateway(redis_url=bench.url, queue=bench.keys.queue, tracing=True) as gateway,
    ):
        url = f"{gateway.v1}/chat/completions"
        httpx.post(url, json=asked, headers={"traceparent": given}, timeout=30).raise_for_status()
        chat = collected.wait("chat echo")
        door = collected.wait("POST /v1/chat/completions")
    assert f"{door.context.trace_id:032x}" == given.split("-")[1]
    assert chat.parent is not None
    assert chat.parent.span_id == door.context.span_id
    assert door.attributes is not None
    assert door.attributes["http.response.status_code"] == 200


def test_a_gateway_that_does_not_trace_passes_its_clients_trace_on(bench: Bench, collected: Collected) -> None:
    given = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    asked = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}
    with (
        running_worker(bench, watch=collected.watch),
        running_gateway(redis_url=bench.url, queue=bench.keys.queue) as gateway,
    ):
        url = f"{gateway.v1}/chat/completions"
        httpx.post(url, json=asked, headers={"traceparent": given}, timeout=30).raise_for_status()
        httpx.post(url, json=asked, headers={"traceparent": "nonsense"}, timeout=30).raise_for_status()
        wait_until(
            lambda: sum(span.name == "chat echo" for span in collected.spans) == 2, description="both are traced"
        )
    traces = {f"{span.context.trace_id:032x}" for span in collected.spans if span.name == "chat echo"}
    assert len(traces) == 2
    assert given.split("-")[1] in traces


def test_a_refused_request_is_an_error_without_phases_it_never_came_to(bench: Bench, collected: Collected) -> None:
    with running_worker(bench, watch=collected.watch):
        bench.submit("q-1", model="nobody's")
        bench.wait_result("q-1")
        chat = collected.wait("chat echo")
    assert chat.status.status_code is StatusCode.ERROR
    assert chat.attributes is not None
    assert chat.attributes["error.type"] == "model_not_found"
    assert "prefill" not in [span.name for span in collected.children(chat)]


def test_no_prompt_and_no_answer_is_in_any_span(bench: Bench, collected: Collected) -> None:
    with running_worker(bench, watch=collected.watch):
        bench.submit("q-1", prompt=PROMPT, max_tokens=30)
        text = bench.wait_result("q-1").text
        collected.wait("chat echo")
    told = "".join(span.to_json() for span in collected.spans)
    assert PROMPT not in told
    assert text[:12] not in told


def test_outside_of_a_span_there_is_nothing_to_carry(collected: Collected) -> None:
    assert current_traceparent() is None
    with collected.provider.get_tracer("t").start_as_current_span("a") as span:
        trace = current_traceparent()
    assert trace is not None
    assert trace.startswith(f"00-{span.get_span_context().trace_id:032x}-{span.get_span_context().span_id:016x}-")


@pytest.mark.parametrize("module", ["tokenmill.client", "tokenmill.gateway.app", "tokenmill_worker.cli"])
def test_nobody_imports_an_exporter_who_does_not_trace(module: str) -> None:
    """redis-py imports the SDK by itself where it is installed; we import nothing of it."""
    code = f"import {module}, sys; sys.exit(any(name.startswith('opentelemetry.exporter') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
