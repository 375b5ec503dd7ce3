"""What the examples for several GPUs promise, read from the files themselves. Starts no container."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenmill_worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
SIZE = "TOKENMILL_TENSOR_PARALLEL_SIZE"

Node = dict[str, Any]  # any: YAML


class ComposeLoader(yaml.SafeLoader):
    """Knows compose's tag for a list that takes the place of the one below it."""


def _override(loader: yaml.SafeLoader, node: yaml.Node) -> list[Any]:
    assert isinstance(node, yaml.SequenceNode)
    own: list[Any] = loader.construct_sequence(node, deep=True)
    return own


ComposeLoader.add_constructor("!override", _override)


@pytest.fixture
def service() -> Node:
    text = (ROOT / "configs" / "compose.tensor-parallel.yaml").read_text()
    document: dict[str, dict[str, Node]] = yaml.load(text, ComposeLoader)
    return document["services"]["worker-gpu"]


@pytest.fixture
def documents() -> dict[str, Node]:
    text = (ROOT / "configs" / "k8s" / "tensor-parallel.yaml").read_text()
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


@pytest.fixture
def pod(documents: dict[str, Node]) -> Node:
    template: Node = documents["Deployment"]["spec"]["template"]
    return template


def test_compose_changes_a_service_that_exists(service: Node) -> None:
    base: Node = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["worker-gpu"]
    assert set(service) - {"shm_size"} <= set(base)


def test_compose_reserves_a_device_for_each_process(service: Node) -> None:
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert service["environment"] == {SIZE: str(device["count"])}


def test_the_pod_asks_for_a_device_for_each_process(pod: Node) -> None:
    (container,) = pod["spec"]["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment[SIZE] == str(container["resources"]["limits"]["nvidia.com/gpu"])
    assert set(environment) <= {f"TOKENMILL_{field.upper()}" for field in WorkerSettings.model_fields}


def test_the_deployment_selects_its_own_pods(documents: dict[str, Node], pod: Node) -> None:
    assert documents["Deployment"]["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]


def test_every_mount_has_its_volume_and_the_claim_exists(documents: dict[str, Node], pod: Node) -> None:
    (container,) = pod["spec"]["containers"]
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert (
        volumes["models"]["persistentVolumeClaim"]["claimName"]
        == documents["PersistentVolumeClaim"]["metadata"]["name"]
    )
    assert volumes["shared-memory"]["emptyDir"]["medium"] == "Memory"


def test_the_pod_is_killed_only_after_its_drain_time(pod: Node) -> None:
    drain_timeout_s = WorkerSettings.model_fields["drain_timeout_s"].default
    assert pod["spec"]["terminationGracePeriodSeconds"] >= drain_timeout_s + 10


def test_the_container_is_hardened(pod: Node) -> None:
    (container,) = pod["spec"]["containers"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_its_probes_ask_the_module_that_the_image_asks(pod: Node) -> None:
    (container,) = pod["spec"]["containers"]
    (check,) = re.findall(r'CMD \["python3", "-m", "([\w.]+)"\]', (ROOT / "worker" / "Dockerfile").read_text())
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["exec"]["command"] == ["python3", "-m", check]
