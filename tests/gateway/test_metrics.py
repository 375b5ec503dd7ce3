"""What a gateway tells Prometheus."""

import httpx2 as httpx
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from tokenmill import Client
from tokenmill.gateway.metrics import QUEUE_METRICS

from tests.gateway.running import RunningGateway, running_gateway
from tests.support.waiting import wait_until

ASKED = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


def scrape(gateway: RunningGateway) -> dict[str, Family]:
    text = httpx.get(f"{gateway.url}/metrics").raise_for_status().text
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(families: dict[str, Family], name: str, **labels: str) -> float:
    """Of the one sample that has these labels among others; 0 when there is none."""
    samples = [sample for family in families.values() for sample in family.samples if sample.name == name]
    found = [sample.value for sample in samples if labels.items() <= sample.labels.items()]
    assert len(found) <= 1
    return found[0] if found else 0.0


def test_answers_are_counted_by_route_and_status(redis_url: str, echo_queue: str) -> None:
    with running_gateway(redis_url=redis_url, queue=echo_queue) as gateway:
        httpx.post(f"{gateway.v1}/chat/completions", json=ASKED, timeout=30).raise_for_status()
        httpx.post(f"{gateway.v1}/chat/completions", json=ASKED | {"stream": True}, timeout=30).raise_for_status()
        assert httpx.post(f"{gateway.v1}/chat/completions", json=ASKED | {"model": "nobody's"}).status_code == 404
        assert httpx.get(f"{gateway.url}/no/such/path").status_code == 404
        families = scrape(gateway)
    chat = {"method": "POST", "route": "/v1/chat/completions"}
    assert value(families, "tokenmill_http_requests_total", **chat, status="200") == 2
    assert value(families, "tokenmill_http_requests_total", **chat, status="404") == 1
    assert value(families, "tokenmill_http_requests_total", route="none", status="404") == 1
    assert value(families, "tokenmill_http_request_duration_seconds_count", route="/v1/chat/completions") == 3
    assert value(families, "tokenmill_http_time_to_first_byte_seconds_count", route="/v1/chat/completions") == 3
    assert value(families, "tokenmill_http_streams_open") == 0
    assert value(families, "tokenmill_http_requests_in_progress") == 1, "the scrape itself"


def test_an_open_stream_is_counted_while_it_lasts(idle_gateway: RunningGateway) -> None:
    url = f"{idle_gateway.v1}/chat/completions"
    with running_gateway(
        redis_url=idle_gateway.settings.redis_url, queue=idle_gateway.settings.queue, early_error_s=0.01
    ) as gateway:
        url = f"{gateway.v1}/chat/completions"
        with httpx.stream("POST", url, json=ASKED | {"stream": True}, timeout=30):
            assert value(scrape(gateway), "tokenmill_http_streams_open") == 1
        wait_until(lambda: not value(scrape(gateway), "tokenmill_http_streams_open"), description="the stream is over")


def test_the_queue_is_told_by_lane(idle_gateway: RunningGateway) -> None:
    with Client(idle_gateway.settings.redis_url, idle_gateway.settings.queue) as client:
        client.submit("one", priority="high")
        client.submit_many([{"prompt": "two"}, {"prompt": "three"}])
    families = scrape(idle_gateway)
    assert value(families, "tokenmill_queue_backlog", lane="high") == 1
    assert value(families, "tokenmill_queue_backlog", lane="normal") == 2
    assert value(families, "tokenmill_queue_unfinished") == 3
    assert value(families, "tokenmill_queue_workers") == 0
    assert value(families, "tokenmill_queue_up") == 1
    assert {name for name in families if name.startswith("tokenmill_queue_")} == set(QUEUE_METRICS)


def test_a_server_that_is_away_is_told_and_not_raised() -> None:
    with running_gateway(redis_url="redis://127.0.0.1:1/0") as gateway:
        families = scrape(gateway)
    assert value(families, "tokenmill_queue_up") == 0
    assert "tokenmill_queue_backlog" not in families
