"""The import arrows of docs/design.md, each held by a fresh interpreter that says what it really loaded."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCER = ROOT / "producer" / "tokenmill"
WORKER = ROOT / "worker" / "tokenmill_worker"
MODEL_LIBRARIES = frozenset({"torch", "transformers", "tokenmill_worker"})


def modules_below(package: Path) -> list[str]:
    """Dotted names of every module of a package, but for __main__: that runs when imported."""
    files = sorted(file for file in package.rglob("*.py") if file.stem != "__main__")
    names = [".".join(file.relative_to(package.parent).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def loaded_by(*modules: str) -> set[str]:
    """Everything in sys.modules after a fresh interpreter imported the given modules."""
    imports = "; ".join(f"import {module}" for module in modules)
    code = f"{imports}; import sys; print(*sys.modules, sep='\\n')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(run.stdout.split())


def imported_names(file: Path) -> set[str]:
    """Absolute module names that a source file imports anywhere in it, lazy and typing-only imports included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def under(names: set[str], *roots: str) -> set[str]:
    return {name for name in names if any(name == root or name.startswith(f"{root}.") for root in roots)}


def test_importing_every_producer_module_loads_no_model_library() -> None:
    loaded = loaded_by(*modules_below(PRODUCER))
    assert not {name.split(".")[0] for name in loaded} & MODEL_LIBRARIES


def test_producer_sources_never_name_the_worker_or_a_model_library() -> None:
    offenders = {
        str(file.relative_to(ROOT)): found
        for file in PRODUCER.rglob("*.py")
        if (found := under(imported_names(file), *MODEL_LIBRARIES))
    }
    assert offenders == {}


def test_importing_tokenmill_loads_neither_redis_nor_pydantic() -> None:
    loaded = loaded_by("tokenmill")
    assert not under(loaded, "redis", "pydantic", "click")


def test_the_worker_imports_only_the_wire_contract_of_the_producer() -> None:
    """Besides, cli.py may start the embedded server, and launch.py children that die with it."""
    allowed = {
        "cli.py": {"tokenmill.embedded", "tokenmill.embedded.embedded_server"},
        "launch.py": {"tokenmill.lifeline", "tokenmill.lifeline.tied_to_us"},
    }
    offenders: dict[str, set[str]] = {}
    for file in WORKER.rglob("*.py"):
        of_producer = under(imported_names(file), "tokenmill") - under(imported_names(file), "tokenmill.wire")
        if found := of_producer - {"tokenmill"} - allowed.get(file.relative_to(WORKER).as_posix(), set()):
            offenders[str(file.relative_to(ROOT))] = found
    assert offenders == {}


def test_the_engine_knows_neither_the_queue_nor_the_settings() -> None:
    forbidden = ("redis", "pydantic", "pydantic_settings", "tokenmill")
    offenders: dict[str, set[str]] = {}
    for file in (WORKER / "engine").rglob("*.py"):
        names = imported_names(file)
        outside = under(names, "tokenmill_worker") - under(names, "tokenmill_worker.engine") - {"tokenmill_worker"}
        if found := under(names, *forbidden) | outside:
            offenders[str(file.relative_to(ROOT))] = found
    assert offenders == {}


@pytest.mark.parametrize(
    "module", ["api", "batch", "engine", "scheduler", "sequence", "pages", "detokenizer", "uniform", "echo"]
)
def test_the_torch_free_half_of_the_engine_loads_no_torch(module: str) -> None:
    loaded = loaded_by(f"tokenmill_worker.engine.{module}")
    assert not under(loaded, "torch", "transformers", "redis", "pydantic")


def test_the_worker_loop_knows_no_redis() -> None:
    assert not under(imported_names(WORKER / "worker.py"), "redis", "tokenmill.wire.store")


def test_only_the_queue_folder_and_the_composition_root_speak_to_the_server() -> None:
    speakers = {
        file.relative_to(WORKER).as_posix() for file in WORKER.rglob("*.py") if under(imported_names(file), "redis")
    }
    assert {speaker for speaker in speakers if not speaker.startswith("queue/")} <= {"cli.py"}


def test_only_the_jobs_of_bulk_runs_know_rq() -> None:
    knowing = {file.relative_to(PRODUCER).as_posix() for file in PRODUCER.rglob("*.py") if _imports(file, "rq")}
    assert knowing
    assert {name for name in knowing if not name.startswith("bulk/jobs/")} == set()
    loaded = loaded_by("tokenmill.cli.bulk")
    assert not under(loaded, "rq"), "a client that does no bulk runs need not have it"


def test_only_the_gateway_knows_a_web_framework() -> None:
    frameworks = ("fastapi", "starlette", "uvicorn")
    knowing = {
        file.relative_to(PRODUCER).as_posix()
        for file in PRODUCER.rglob("*.py")
        if any(_imports(file, name) for name in frameworks)
    }
    assert knowing
    assert {name for name in knowing if not name.startswith("gateway/")} == set()
    assert not under(loaded_by("tokenmill.cli.gateway"), *frameworks), "its help needs no extra"


def _imports(file: Path, package: str) -> bool:
    return bool(under(imported_names(file), package))


def test_only_settings_and_the_command_lines_read_the_environment() -> None:
    readers = set()
    for file in [*PRODUCER.rglob("*.py"), *WORKER.rglob("*.py")]:
        attributes = {
            ast.unparse(node) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)
        }
        if attributes & {"os.environ", "os.getenv"}:
            readers.add(file.relative_to(ROOT).as_posix())
    allowed = (
        "producer/tokenmill/cli/",
        "producer/tokenmill/submitting.py",
        "worker/tokenmill_worker/settings.py",
        "worker/tokenmill_worker/cli.py",
        "worker/tokenmill_worker/launch.py",
    )
    assert {reader for reader in readers if not reader.startswith(allowed)} == set()
