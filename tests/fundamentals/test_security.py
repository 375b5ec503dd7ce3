"""What SECURITY.md promises of the code: no pickle, no code from a model or a template, nothing that a shell reads."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from jinja2.exceptions import SecurityError
from rq.serializers import JSONSerializer
from tokenmill.bulk.jobs import board
from tokenmill_worker.engine.api import EngineConfig
from tokenmill_worker.settings import WorkerSettings

from tests.packaging.audit import findings

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "producer").rglob("*.py"), *(ROOT / "worker").rglob("*.py")])
CODE_IN_DATA = {"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle"}
CODE_IN_CALLS = {"eval", "exec", "torch.load", "yaml.load", "os.system", "os.popen"}
ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_no_module_reads_or_writes_code_as_data() -> None:
    offenders = {
        (str(file.relative_to(ROOT)), name)
        for file in SOURCES
        for name in imported(ast.parse(file.read_text()))
        if name.partition(".")[0] in CODE_IN_DATA
    }
    assert offenders == set()


def test_no_module_runs_what_it_reads() -> None:
    offenders = set()
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                runs = ast.unparse(node.func) in CODE_IN_CALLS
                if runs or {"shell": "True"}.items() <= keywords.items() or keywords.get("allow_pickle") == "True":
                    offenders.add(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert offenders == set()


def test_jobs_of_bulk_runs_travel_as_json() -> None:
    assert "JSONSerializer" in inspect.getsource(board)
    assert JSONSerializer.loads(JSONSerializer.dumps({"run": 1})) == {"run": 1}


def test_code_that_comes_with_a_model_must_be_asked_for() -> None:
    assert WorkerSettings.model_fields["trust_remote_code"].default is False
    assert EngineConfig().trust_remote_code is False


def test_a_chat_template_cannot_leave_its_sandbox() -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    with pytest.raises(SecurityError):
        _compile_jinja_template(ESCAPE).render()


def test_the_audit_tells_what_is_not_pinned() -> None:
    from importlib.metadata import distribution

    click = distribution("click")
    assert list(findings([click], {"click": click.version})) == []
    assert list(findings([click], {"click": "0.1"})) == [f"click {click.version} is installed, 0.1 is pinned"]
    assert list(findings([click], {})) == [f"click {click.version} is installed and not pinned"]
