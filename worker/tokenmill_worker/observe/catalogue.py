"""Every metric of a worker: name, kind, where its value comes from, and what it means. Knows no exporter.

docs/observability.md has the same as a table, made from here.
"""

from operator import attrgetter
from typing import Literal, NamedTuple

from tokenmill_worker.metrics import WorkerStatistics
from tokenmill_worker.observe.histogram import Histogram
from tokenmill_worker.observe.measures import Measures

PREFIX = "tokenmill_"


class Metric(NamedTuple):
    """`source`: a field of WorkerStatistics, `part.field`. A counter's name gets `_total` when it is told."""

    name: str
    kind: Literal["counter", "gauge"]
    source: str
    help: str

    def read(self, now: WorkerStatistics) -> float:
        return float(attrgetter(self.source)(now))


class Distribution(NamedTuple):
    """`source`: a histogram of Measures."""

    name: str
    source: str
    help: str

    def read(self, measures: Measures) -> Histogram:
        histogram: Histogram = getattr(measures, self.source)
        return histogram


METRICS = (
    Metric("num_requests_running", "gauge", "engine.num_running", "sequences in the batch"),
    Metric("num_requests_waiting", "gauge", "engine.num_waiting", "sequences in the engine that wait for room"),
    Metric("num_requests_ready", "gauge", "consumer.num_ready", "requests read ahead and not in the engine yet"),
    Metric("kv_cache_usage_perc", "gauge", "engine.kv_cache_usage", "share of the KV pages in use, 0 to 1"),
    Metric("kv_cache_pages", "gauge", "engine.num_pages", "KV pages there are"),
    Metric("steps", "counter", "engine.num_steps", "steps of the engine"),
    Metric("prompt_tokens", "counter", "engine.num_prefill_tokens", "tokens prefilled"),
    Metric("generation_tokens", "counter", "engine.num_drawn_tokens", "tokens generated"),
    Metric(
        "prefix_cache_queries", "counter", "engine.num_prompt_tokens", "prompt tokens looked up in the prefix cache"
    ),
    Metric("prefix_cache_hits", "counter", "engine.num_cached_tokens", "prompt tokens found there"),
    Metric("num_preemptions", "counter", "engine.num_preemptions", "sequences that gave way, to go on later"),
    Metric("requests_fetched", "counter", "consumer.num_fetched", "requests taken from the lanes"),
    Metric("requests_quarantined", "counter", "consumer.num_quarantined", "requests run alone, under suspicion"),
    Metric("requests_open", "gauge", "publisher.num_open", "requests whose last word the server does not have"),
    Metric("requests_retried", "counter", "publisher.num_retried", "requests handed back because the engine failed"),
    Metric("tokens_unpublished", "gauge", "publisher.num_unpublished", "tokens that the server does not have yet"),
    Metric("fence_rejections", "counter", "publisher.num_writes_fenced", "requests whose write was refused as stale"),
    Metric("lease_renewals", "counter", "lease.num_renewals", "times the lease was renewed"),
    Metric("leases_lost", "counter", "lease.num_fenced", "times the lease ran out before it was renewed"),
    Metric("requests_taken_over", "counter", "lease.num_reaped", "requests brought back from workers that were gone"),
)

DISTRIBUTIONS = (
    Distribution("time_to_first_token_seconds", "first_token", "from acceptance to the first token"),
    Distribution(
        "inter_token_latency_seconds", "inter_token", "between two steps' ends, for each sequence that decoded"
    ),
    Distribution("request_time_per_output_token_seconds", "per_output_token", "of a request: mean after its first"),
    Distribution("request_queue_time_seconds", "queue_time", "from acceptance to the claim"),
    Distribution("request_inference_time_seconds", "inference_time", "from the claim to the last token"),
    Distribution("e2e_request_latency_seconds", "latency", "from acceptance to the last token"),
    Distribution("request_prompt_tokens", "prompt_tokens", "prompt tokens of one request"),
    Distribution("request_generation_tokens", "generation_tokens", "tokens generated for one request, all choices"),
    Distribution("iteration_tokens", "step_tokens", "tokens computed in one step"),
    Distribution("batch_size", "rows", "sequences in the batch after a step"),
    Distribution("step_duration_seconds", "step_time", "of one step of the engine"),
)

ENDED = Metric("request_success", "counter", "", "requests with their last word said, by finish_reason")
INFO = Metric("worker_info", "gauge", "", "1; its labels say what the worker is: device, dtype, attention backend ...")

VLLM = {  # ours: the same by vLLM's names, whose prefix is `vllm:`
    "num_requests_running": "num_requests_running",
    "num_requests_waiting": "num_requests_waiting",
    "kv_cache_usage_perc": "kv_cache_usage_perc",
    "prompt_tokens": "prompt_tokens_total",
    "generation_tokens": "generation_tokens_total",
    "prefix_cache_queries": "prefix_cache_queries_total",
    "prefix_cache_hits": "prefix_cache_hits_total",
    "num_preemptions": "num_preemptions_total",
    "time_to_first_token_seconds": "time_to_first_token_seconds",
    "inter_token_latency_seconds": "inter_token_latency_seconds",
    "request_time_per_output_token_seconds": "request_time_per_output_token_seconds",
    "request_queue_time_seconds": "request_queue_time_seconds",
    "request_inference_time_seconds": "request_inference_time_seconds",
    "e2e_request_latency_seconds": "e2e_request_latency_seconds",
    "request_prompt_tokens": "request_prompt_tokens",
    "request_generation_tokens": "request_generation_tokens",
    "iteration_tokens": "iteration_tokens_total",
    "request_success": "request_success_total",
}
