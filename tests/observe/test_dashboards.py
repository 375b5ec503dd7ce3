"""Grafana's dashboard, the alert rules and the scrape configuration against the metrics that there are."""

import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric as Family
from tokenmill.gateway.metrics import QUEUE_METRICS, GatewayMetrics
from tokenmill_worker.observe.catalogue import DISTRIBUTIONS, ENDED, INFO, METRICS, PREFIX, VLLM

from docs.generate import metrics_page, with_metrics

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
DASHBOARD = CONFIGS / "grafana" / "tokenmill.json"
HISTOGRAM = ("_bucket", "_sum", "_count")

Node = dict[str, Any]  # any: YAML and JSON


def gateway_families() -> list[Family]:
    return [family for family in GatewayMetrics().registry.collect() if family.name.startswith(PREFIX)]


def samples() -> set[str]:
    """Every name that a query may use."""
    names = {f"{PREFIX}{one.name}{'_total' if one.kind == 'counter' else ''}" for one in (*METRICS, ENDED, INFO)}
    names |= {f"{PREFIX}{one.name}{suffix}" for one in DISTRIBUTIONS for suffix in HISTOGRAM}
    for family in gateway_families():
        endings = {"counter": ("_total",), "histogram": HISTOGRAM}.get(family.type, ("",))
        names |= {family.name + ending for ending in endings}
    return names | set(QUEUE_METRICS) | {"process_resident_memory_bytes"}


def rules() -> list[Node]:
    document = yaml.safe_load((CONFIGS / "alerts.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def queries() -> Iterator[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (variable["query"]["query"] for variable in dashboard["templating"]["list"])
    yield from (rule["expr"] for rule in rules())


@pytest.mark.parametrize("query", sorted(set(queries())))
def test_every_metric_that_is_asked_for_exists(query: str) -> None:
    used = set(re.findall(r"\b(?:tokenmill|process)_[a-z0-9_]+", query))
    assert used
    assert used <= samples()


def test_every_alert_is_explained_where_it_leads_to() -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    for rule in rules():
        assert f"`{rule['alert']}`" in page
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]


def test_what_the_fleet_dies_of_has_an_alert() -> None:
    asked = " ".join(rule["expr"] for rule in rules())
    for metric in (
        "queue_oldest_age_seconds",
        "queue_dead_letters",
        "lease_renewals_total",
        "fence_rejections_total",
        "queue_workers",
        "queue_lane_limit",
    ):
        assert PREFIX + metric in asked


def test_panels_have_titles_and_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = set(product(columns, lines))
        assert panel["title"]
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells


def test_the_scraper_looks_where_compose_lets_metrics_out() -> None:
    jobs = yaml.safe_load((CONFIGS / "prometheus.yml").read_text())["scrape_configs"]
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    looked = {name: entry["port"] for job in jobs for entry in job["dns_sd_configs"] for name in entry["names"]}
    assert looked == {
        "worker-cpu": services["worker-cpu"]["environment"]["TOKENMILL_METRICS_PORT"],
        "worker-gpu": services["worker-gpu"]["environment"]["TOKENMILL_METRICS_PORT"],
        "gateway": services["gateway"]["environment"]["TOKENMILL_GATEWAY_PORT"],
    }


def test_the_tables_of_metrics_are_those_of_the_code() -> None:
    page = metrics_page().read_text()
    assert page == with_metrics(page), "run: python -m docs.generate"


def test_vllm_s_names_are_given_to_metrics_that_exist() -> None:
    assert set(VLLM) <= {one.name for one in (*METRICS, *DISTRIBUTIONS, ENDED)}
