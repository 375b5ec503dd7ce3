"""What both Dockerfiles promise, read as text. Builds nothing; `make images-check` does."""

import json
import re
import tomllib
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILES = ("producer/Dockerfile", "worker/Dockerfile")

Instruction = tuple[str, str]


def instructions(path: str) -> list[Instruction]:
    """(INSTRUCTION, rest of it), continuation lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", (ROOT / path).read_text(), flags=re.MULTILINE)
    logical = text.replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in logical if line.strip()]


def final_stage(path: str) -> list[Instruction]:
    steps = instructions(path)
    return steps[max(position for position, (name, _) in enumerate(steps) if name == "FROM") :]


@pytest.mark.parametrize("path", DOCKERFILES)
def test_the_image_runs_as_a_numbered_user_that_is_not_root(path: str) -> None:
    (user,) = [value for name, value in final_stage(path) if name == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)  # a number: Kubernetes' runAsNonRoot cannot check a name


@pytest.mark.parametrize("path", DOCKERFILES)
def test_signals_reach_the_program_because_no_shell_stands_between(path: str) -> None:
    (entrypoint,) = [value for name, value in final_stage(path) if name == "ENTRYPOINT"]
    assert json.loads(entrypoint)[0] == "tokenmill"


@pytest.mark.parametrize("path", DOCKERFILES)
def test_a_change_of_our_code_leaves_the_dependencies_layers_valid(path: str) -> None:
    steps = instructions(path)
    first_source = next(i for i, (name, value) in enumerate(steps) if name == "COPY" and "producer/tokenmill" in value)
    downloads = [i for i, (name, value) in enumerate(steps) if name == "RUN" and "--constraint" in value]
    assert downloads
    assert max(downloads) < first_source


@pytest.mark.parametrize("path", DOCKERFILES)
def test_every_dependency_is_installed_under_the_tested_pins(path: str) -> None:
    for name, value in instructions(path):
        for command in value.split("&&") if name == "RUN" else []:
            if "pip install" in command:
                assert "--constraint constraints.txt" in command or "--no-deps ." in command, command


@pytest.mark.parametrize("path", DOCKERFILES)
def test_build_tools_stay_out_of_the_final_stage(path: str) -> None:
    assert not any("pip" in value or "venv" in value for name, value in final_stage(path) if name == "RUN")


@pytest.mark.parametrize("path", DOCKERFILES)
def test_what_a_build_copies_is_let_through_by_dockerignore(path: str) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for name, value in instructions(path)
        if name == "COPY" and not value.startswith("--from")
        for source in value.split()[:-1]
    }
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert any(source == path or source.startswith(f"{path}/") for path in allowed), source


def test_a_worker_is_healthy_while_it_holds_a_lease() -> None:
    (check,) = [value for name, value in final_stage("worker/Dockerfile") if name == "HEALTHCHECK"]
    command = json.loads(check[check.index("[") :])
    assert command[:2] == ["python3", "-m"]
    assert find_spec(command[2]) is not None


def test_every_dependency_of_every_extra_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = list(chain(project["dependencies"], *project["optional-dependencies"].values()))
    pins = [line for line in (ROOT / "configs" / "constraints.txt").read_text().splitlines() if "==" in line]
    pinned = {canonical(pin) for pin in pins}
    assert {canonical(requirement) for requirement in requirements} <= pinned


def canonical(requirement: str) -> str:
    name = re.split(r"[\[<>=;! ]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()
