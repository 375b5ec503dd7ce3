"""Writes the settings table of docs/operations.md and the tables of docs/observability.md from the code.

python -m docs.generate            rewrites them; tests compare. Knows no setting and no metric by name.
"""

import json
import sys
from pathlib import Path

from prometheus_client.metrics_core import Metric as Family
from pydantic.fields import FieldInfo
from tokenmill.gateway.metrics import QUEUE_METRICS, GatewayMetrics
from tokenmill_worker.observe.catalogue import DISTRIBUTIONS, ENDED, INFO, METRICS, PREFIX, VLLM
from tokenmill_worker.settings import WorkerSettings

PAGE = Path(__file__).with_name("operations.md")
BEGIN, END = "<!-- settings: made by docs/generate.py -->\n", "<!-- end of settings -->\n"


def settings_table() -> str:
    rows = [_row(name, field) for name, field in WorkerSettings.model_fields.items()]
    return "\n".join(["| setting | environment | default | |", "|---|---|---|---|", *rows, ""])


def _row(name: str, field: FieldInfo) -> str:
    default = "none" if field.default is None else f"`{json.dumps(field.get_default(call_default_factory=True))}`"
    return f"| `{name}` | `TOKENMILL_{name.upper()}` | {default} | {field.description} |"


def with_table(page: str) -> str:
    """The page with a fresh table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{settings_table()}{END}{after}"


def metrics_page() -> Path:
    return PAGE.with_name("observability.md")


def with_metrics(page: str) -> str:
    """The page with fresh tables between their marks."""
    for name, table in (("worker", _worker_table()), ("gateway", _gateway_table())):
        begin, end = f"<!-- {name}'s metrics: made by docs/generate.py -->\n", f"<!-- end of {name}'s metrics -->\n"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}{table}{end}{after}"
    return page


def _worker_table() -> str:
    rows = [(one.name, str(one.kind), one.help) for one in (*METRICS, ENDED, INFO)]
    rows += [(one.name, "histogram", one.help) for one in DISTRIBUTIONS]
    return _table(
        ["metric", "type", "meaning", "vLLM's name"],
        [
            [f"`{_told(PREFIX + name, kind)}`", kind, help_, f"`vllm:{VLLM[name]}`" if name in VLLM else ""]
            for name, kind, help_ in rows
        ],
    )


def _gateway_table() -> str:
    families = [family for family in GatewayMetrics().registry.collect() if family.name.startswith(PREFIX)]
    rows = [[f"`{_told(one.name, one.type)}`", one.type, _labels(one), one.documentation] for one in families]
    for name, help_ in QUEUE_METRICS.items():
        rows.append([f"`{name}`", "gauge", "queue, lane" if "by lane" in help_ else "queue", help_])
    return _table(["metric", "type", "labels", "meaning"], rows)


def _labels(family: Family) -> str:
    return {"counter": "method, route, status", "histogram": "route"}.get(family.type, "")


def _told(name: str, kind: str) -> str:
    return f"{name}_total" if kind == "counter" else name


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    PAGE.write_text(with_table(PAGE.read_text()))
    metrics_page().write_text(with_metrics(metrics_page().read_text()))
    sys.stdout.write(f"{PAGE.name}: {len(WorkerSettings.model_fields)} settings\n")


if __name__ == "__main__":
    main()
