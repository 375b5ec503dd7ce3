"""A run's spec: what goes out as JSON comes back as the same run."""

import json

import pytest
from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.spec import InputSpec, QueueSpec, RunSpec, SpecError

SMALL = RunSpec(input=InputSpec(paths=("rows.jsonl",)), out="out.jsonl")
FULL = RunSpec(
    input=InputSpec(paths=("a/*.parquet", "-"), format="parquet"),
    out="out.csv",
    out_format="csv",
    recipe=Recipe(template="{{ q }}", sampling={"max_tokens": 8}, parameters={"seed": "s"}, id_column="id"),
    samples=3,
    limit=10,
    window=7,
    order="completion",
    max_errors=5,
    priority="normal",
    tenant="me",
    queue=QueueSpec(name="q", partitions=4),
)


@pytest.mark.parametrize("spec", [SMALL, FULL], ids=["small", "full"])
def test_a_spec_survives_json(spec: RunSpec) -> None:
    assert RunSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("change", [{"version": 2}, {"recipe": {"colour": 1}}, {"input": None}, {"more": 1}], ids=str)
def test_what_is_no_spec_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        RunSpec.from_json({**SMALL.to_json(), **change})
