"""A worker's figures as Prometheus reads them, on the echo model and a real server."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from tokenmill_worker.engine import Engine, EngineConfig
from tokenmill_worker.engine.api import EngineError, EngineRequest, SamplingParams
from tokenmill_worker.observe.catalogue import DISTRIBUTIONS, ENDED, INFO, METRICS, PREFIX
from tokenmill_worker.observe.histogram import Histogram
from tokenmill_worker.observe.measures import Measures
from tokenmill_worker.observe.observers import Observers
from tokenmill_worker.observe.watch import NOBODY

from tests.queue.harness import Bench, RunningWorker, running_worker, settings_for
from tests.support.waiting import wait_until


@contextmanager
def scraped_worker(bench: Bench) -> Iterator[tuple[RunningWorker, str, Measures]]:
    """A worker with metrics on a free port, where they are, and what feeds them."""
    settings = settings_for(bench, metrics_port=0)
    observers = Observers.asked_for(settings)
    assert observers.measures is not None
    with (
        running_worker(bench, watch=observers.watch) as running,
        observers.at_work(running.worker, settings, {"attention_backend": ""}) as port,
    ):
        yield running, f"http://127.0.0.1:{port}/metrics", observers.measures


def scrape(url: str) -> dict[str, Family]:
    text = httpx2.get(url).raise_for_status().text
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(families: dict[str, Family], name: str, **labels: str) -> float:
    """Of the one sample that has these labels among others."""
    samples = [sample for family in families.values() for sample in family.samples if sample.name == PREFIX + name]
    (found,) = [sample.value for sample in samples if labels.items() <= sample.labels.items()]
    return found


def test_a_scrape_tells_what_the_worker_did(bench: Bench) -> None:
    with scraped_worker(bench) as (_, url, measures):
        bench.submit("q-1", prompt="twenty-one characters", max_tokens=8)
        bench.submit("q-2", prompt="hello", max_tokens=4)
        bench.submit("q-3", prompt="hello", max_tokens=4, model="nobody's")
        for request_id in ("q-1", "q-2", "q-3"):
            bench.wait_result(request_id)
        wait_until(lambda: sum(measures.num_ended.values()) == 3, description="three ends counted")
        families = scrape(url)
    assert value(families, "request_success_total", finish_reason="length") == 2
    assert value(families, "request_success_total", finish_reason="error") == 1
    assert value(families, "generation_tokens_total") == 12
    assert value(families, "prompt_tokens_total") == 26
    assert value(families, "time_to_first_token_seconds_count") == 2
    assert value(families, "e2e_request_latency_seconds_count") == 3
    assert value(families, "request_generation_tokens_sum") == 12
    assert value(families, "request_generation_tokens_bucket", le="5.0") == 2
    assert value(families, "lease_renewals_total") >= 1
    assert value(families, "num_requests_running") == 0
    assert value(families, "step_duration_seconds_count") == value(families, "steps_total")
    assert value(families, "worker_info", model_name="echo", queue=bench.keys.queue, device="cpu") == 1


def test_the_catalogue_is_what_a_scrape_tells_and_no_more(bench: Bench) -> None:
    with scraped_worker(bench) as (_, url, _):
        told = {name for name in scrape(url) if name.startswith(PREFIX)}
    assert told == {PREFIX + metric.name for metric in (*METRICS, *DISTRIBUTIONS, ENDED, INFO)}


def test_labels_are_bounded_by_what_a_worker_is(bench: Bench) -> None:
    with scraped_worker(bench) as (_, url, _):
        bench.submit("q-1")
        bench.wait_result("q-1")
        families = scrape(url)
    labels = {
        name
        for family in families.values()
        if family.name.startswith(PREFIX) and family.name != PREFIX + INFO.name
        for sample in family.samples
        for name in sample.labels
    }
    assert labels == {"model_name", "queue", "finish_reason", "le"}


def test_nothing_is_observed_unless_asked_for(bench: Bench) -> None:
    observers = Observers.asked_for(settings_for(bench))
    assert observers.watch == NOBODY


def test_a_port_that_is_taken_is_a_clear_error(bench: Bench) -> None:
    with scraped_worker(bench) as (running, url, _):
        port = int(url.split(":")[2].split("/")[0])
        settings = settings_for(bench, metrics_port=port)
        observers = Observers.asked_for(settings)
        with pytest.raises(EngineError, match="--metrics-port"), observers.at_work(running.worker, settings, {}):
            pass


def test_a_step_counts_its_rows_and_a_call_without_work_nothing() -> None:
    engine = Engine(EngineConfig(model="echo", max_num_seqs=4))
    measures = Measures()
    params = SamplingParams(max_tokens=3, temperature=0.0)
    for name in ("a", "b"):
        engine.add_request(EngineRequest(request_id=name, prompt_token_ids=[1, 2, 3], params=params))
    for _ in range(6):
        measures.stepped(engine, engine.step(), 0.0)
    assert engine.statistics().num_steps == measures.step_time.count == 3
    assert measures.step_tokens.sum == 6 + 2 + 2
    assert measures.inter_token.count == 4


def test_a_histogram_counts_up_to_each_bound() -> None:
    histogram = Histogram([1.0, 2.0])
    for number in (0.5, 1.0, 1.5, 3.0):
        histogram.observe(number)
    histogram.observe(2.0, times=2)
    assert histogram.cumulative() == [(1.0, 2), (2.0, 5), (float("inf"), 6)]
    assert (histogram.count, histogram.sum) == (6, 10.0)
