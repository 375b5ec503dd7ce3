"""What configs/k8s promises: valid by Kubernetes' own schemas, hardened, drained, of one piece. Reaches no cluster."""

from itertools import chain
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml
from tokenmill.cli.gateway import gateway as gateway_command
from tokenmill.gateway.metrics import QUEUE_METRICS
from tokenmill_worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "k8s"
FILES = sorted(file.name for file in FOLDER.glob("*.yaml"))
NOT_OF_KUBERNETES = {"kustomization.yaml", "scaling.yaml"}  # resources of other programs: no schema here
OURS = ("worker.yaml", "bulk.yaml", "gateway.yaml")

Node = dict[str, Any]  # any: YAML


def documents(name: str) -> list[Node]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def of_kind(name: str, kind: str) -> Node:
    (found,) = [document for document in documents(name) if document["kind"] == kind]
    return found


def pod(name: str) -> Node:
    (owner,) = [document for document in documents(name) if document["kind"] in ("Deployment", "StatefulSet")]
    template: Node = owner["spec"]["template"]
    assert owner["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    return template


def containers(name: str) -> list[Node]:
    spec = pod(name)["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def variables(name: str) -> dict[str, str | None]:
    return {entry["name"]: entry.get("value") for entry in pod(name)["spec"]["containers"][0]["env"]}


@pytest.mark.parametrize("name", [name for name in FILES if name not in NOT_OF_KUBERNETES])
def test_every_resource_is_valid_by_the_schemas_of_kubernetes(name: str) -> None:
    for document in documents(name):
        kubernetes_validate.validate(document, desired_version="1.34", strict=True)


def test_one_command_applies_every_part_of_the_system() -> None:
    (kustomization,) = documents("kustomization.yaml")
    assert set(kustomization["resources"]) == {*OURS, "redis.yaml", "network.yaml"}
    used = {container["image"] for name in OURS for container in containers(name)}
    assert {image["name"] for image in kustomization["images"]} == used


@pytest.mark.parametrize("name", [*OURS, "redis.yaml"])
def test_every_container_is_hardened_and_bounded(name: str) -> None:
    spec = pod(name)["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    for container in containers(name):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("name", [*OURS, "redis.yaml"])
def test_what_is_mounted_is_there_and_a_disruption_is_bounded(name: str) -> None:
    spec = pod(name)["spec"]
    claimed = [owner["spec"].get("volumeClaimTemplates", []) for owner in documents(name) if "spec" in owner]
    claims = {claim["metadata"]["name"] for templates in claimed for claim in templates}
    volumes = {volume["name"] for volume in spec["volumes"]} | claims
    assert {mount["name"] for container in containers(name) for mount in container["volumeMounts"]} <= volumes
    budget = of_kind(name, "PodDisruptionBudget")["spec"]
    assert budget["selector"]["matchLabels"] == pod(name)["metadata"]["labels"]


def test_a_worker_is_killed_only_after_its_drain_time() -> None:
    drain_timeout_s = WorkerSettings.model_fields["drain_timeout_s"].default
    assert pod("worker.yaml")["spec"]["terminationGracePeriodSeconds"] >= drain_timeout_s + 10


def test_settings_are_some_that_exist() -> None:
    shared = {"TOKENMILL_REDIS_URL", "TOKENMILL_QUEUE", "TOKENMILL_PARTITIONS", "TOKENMILL_FILES"}
    assert set(variables("worker.yaml")) <= {f"TOKENMILL_{field.upper()}" for field in WorkerSettings.model_fields}
    options = {option.envvar for option in gateway_command.params if isinstance(option, click.Option)}
    assert set(variables("gateway.yaml")) <= options | shared
    assert set(variables("bulk.yaml")) <= shared


def test_a_gateway_on_a_cluster_asks_for_keys() -> None:
    assert variables("gateway.yaml")["TOKENMILL_REQUIRE_KEYS"] == "1"


def test_gateways_and_bulk_workers_share_their_files() -> None:
    assert variables("gateway.yaml")["TOKENMILL_FILES"] == variables("bulk.yaml")["TOKENMILL_FILES"]
    assert of_kind("bulk.yaml", "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]


def test_only_the_server_s_clients_reach_it() -> None:
    (rule,) = of_kind("network.yaml", "NetworkPolicy")["spec"]["ingress"]
    (source,) = rule["from"]
    (expression,) = source["podSelector"]["matchExpressions"]
    apps = {pod(name)["metadata"]["labels"]["app"] for name in (*OURS, "tensor-parallel.yaml")}
    assert set(expression["values"]) == apps


def test_the_server_is_set_up_as_everywhere() -> None:
    own = settings(of_kind("redis.yaml", "ConfigMap")["data"]["redis.conf"])
    assert own == settings((ROOT / "configs" / "redis.conf").read_text())


def settings(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split(maxsplit=1) for line in lines)


def test_workers_are_scaled_by_a_number_that_the_gateway_tells() -> None:
    scaled = of_kind("scaling.yaml", "ScaledObject")["spec"]
    assert scaled["scaleTargetRef"]["name"] == of_kind("worker.yaml", "Deployment")["metadata"]["name"]
    (trigger,) = scaled["triggers"]
    service = of_kind("gateway.yaml", "Service")
    assert trigger["metadata"]["valueLocation"].partition("{")[0] in QUEUE_METRICS
    assert f"//{service['metadata']['name']}." in trigger["metadata"]["url"]
    assert f":{service['spec']['ports'][0]['port']}/metrics" in trigger["metadata"]["url"]
    assert "replicas" not in of_kind("worker.yaml", "Deployment")["spec"], "or every apply would undo the scaling"


def test_probes_ask_what_exists() -> None:
    probes = chain.from_iterable(
        (container[probe] for probe in ("startupProbe", "livenessProbe", "readinessProbe") if probe in container)
        for container in containers("gateway.yaml")
    )
    assert {probe["httpGet"]["path"] for probe in probes} == {"/healthz"}
    (worker,) = pod("worker.yaml")["spec"]["containers"]
    assert worker["livenessProbe"]["exec"]["command"][-1] == "tokenmill_worker.queue.liveness"
