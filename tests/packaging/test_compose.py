"""What compose.yaml and .env promise, read from the files themselves. Starts no container; `make images-check` does."""

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from tokenmill.cli.gateway import gateway as gateway_command
from tokenmill_worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
WORKERS = ("worker-cpu", "worker-gpu")

Service = dict[str, Any]  # any: YAML


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    document: dict[str, dict[str, Service]] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return document["services"]


def seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()  # type: ignore[union-attr]  # no match: a failed test
    return int(number) * {"s": 1, "m": 60}[unit]


def env_file() -> dict[str, str]:
    lines = (ROOT / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_a_plain_up_starts_server_bulk_worker_and_the_worker_that_runs_anywhere(services: dict[str, Service]) -> None:
    active = set(env_file()["COMPOSE_PROFILES"].split(","))
    started = {name for name, service in services.items() if active & set(service.get("profiles", active))}
    assert started == {"redis", "worker-cpu", "bulk", "gateway"}


def test_only_the_gpu_worker_reserves_a_device(services: dict[str, Service]) -> None:
    assert {name for name, service in services.items() if "deploy" in service} == {"worker-gpu"}
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_is_killed_only_after_its_drain_time(services: dict[str, Service], name: str) -> None:
    drain_timeout_s = WorkerSettings.model_fields["drain_timeout_s"].default
    assert seconds(services[name]["stop_grace_period"]) >= drain_timeout_s + 10


@pytest.mark.parametrize("name", [*WORKERS, "bulk", "gateway", "tokenmill"])
def test_every_client_of_the_server_waits_until_it_is_healthy(services: dict[str, Service], name: str) -> None:
    assert services[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert "healthcheck" in services["redis"]


def test_every_container_is_hardened(services: dict[str, Service]) -> None:
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_long_running_services_come_back_and_commands_do_not(services: dict[str, Service]) -> None:
    assert {name: service["restart"] for name, service in services.items()} == {
        "redis": "unless-stopped",
        "worker-cpu": "unless-stopped",
        "worker-gpu": "unless-stopped",
        "bulk": "unless-stopped",
        "gateway": "unless-stopped",
        "prometheus": "unless-stopped",
        "grafana": "unless-stopped",
        "tokenmill": "no",
    }


def test_no_port_is_open_beyond_this_host(services: dict[str, Service]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_queue_outlives_its_container(services: dict[str, Service]) -> None:
    assert "queue:/data" in services["redis"]["volumes"]


def test_the_bulk_worker_stands_in_the_one_folder_that_it_may_touch(services: dict[str, Service]) -> None:
    bulk = services["bulk"]
    folder = bulk["environment"]["TOKENMILL_FILES"]
    assert bulk["volumes"] == [f"files:{folder}"]
    assert bulk["working_dir"] == folder, "so that names given to `docker compose exec` mean files there"
    dockerfile = (ROOT / "producer/Dockerfile").read_text()
    assert re.search(rf"install -d .*{folder}\b", dockerfile), "its user can write there"


def test_the_gateway_and_the_bulk_worker_share_their_files(services: dict[str, Service]) -> None:
    gateway, bulk = services["gateway"], services["bulk"]
    assert gateway["volumes"] == bulk["volumes"] == [f"files:{gateway['environment']['TOKENMILL_FILES']}"]


def test_the_gateway_is_configured_by_options_that_exist(services: dict[str, Service]) -> None:
    known = {option.envvar for option in gateway_command.params if isinstance(option, click.Option)}
    shared = {"TOKENMILL_REDIS_URL", "TOKENMILL_QUEUE", "TOKENMILL_PARTITIONS"}
    assert set(services["gateway"]["environment"]) <= known | shared


def test_every_file_that_a_container_mounts_is_there(services: dict[str, Service]) -> None:
    mounts = [mount for service in services.values() for mount in service.get("volumes", [])]
    files = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_monitoring_is_there_when_asked_for_and_shows_without_an_account(services: dict[str, Service]) -> None:
    assert {name for name, service in services.items() if service.get("profiles") == ["monitoring"]} == {
        "prometheus",
        "grafana",
    }
    assert services["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_is_configured_by_settings_that_exist(services: dict[str, Service], name: str) -> None:
    known = {f"TOKENMILL_{field.upper()}" for field in WorkerSettings.model_fields}
    assert set(services[name]["environment"]) <= known


def test_the_server_refuses_to_forget() -> None:
    lines = (ROOT / "configs" / "redis.conf").read_text().splitlines()
    settings = dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["maxmemory-policy"] == "noeviction"
