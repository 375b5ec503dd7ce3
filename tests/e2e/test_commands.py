"""The command line as a whole: help, exit codes, and plugins that break only themselves."""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.testing import CliRunner
from tokenmill.cli import group

from tests.e2e.commands import tokenmill

OWN = [["submit"], ["bulk", "run"], ["queue"], ["doctor"], ["demo"]]
OWN += [["dead", name] for name in ("list", "redrive", "purge")]


@pytest.mark.parametrize("words", OWN, ids=" ".join)
def test_every_command_has_help_with_an_example_and_its_exit_codes(words: Sequence[str]) -> None:
    answer = CliRunner().invoke(group.main, [*words, "--help"])
    assert answer.exit_code == 0
    assert f"tokenmill {' '.join(words)}" in answer.output.partition("Usage:")[2].partition("\n")[2]
    assert "Exit codes: 0 " in " ".join(answer.output.split())


def test_the_list_of_commands_names_plugins_and_loads_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EntryPoint, "load", lambda self: pytest.fail(f"{self.name} was loaded"))
    answer = CliRunner().invoke(group.main, ["--help"])
    assert answer.exit_code == 0
    for name in (*group.OWN_COMMANDS, "worker"):
        assert f"  {name} " in answer.output


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(group.main, ["gateway-of-tomorrow"]).exit_code == 2


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plugin module `broken_plugin`, announced by entry points; its content is the test's."""
    points = [
        EntryPoint(name, f"broken_plugin:{name}", group.COMMANDS_GROUP) for name in ("broken", "submit", "sibling")
    ]
    monkeypatch.setattr(group, "entry_points", lambda group: importlib.metadata.EntryPoints(points))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_plugin", raising=False)
    return tmp_path / "broken_plugin.py"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("import a_module_that_nobody_has", "pip install a_module_that_nobody_has"),
        ("raise RuntimeError('bad day')", "RuntimeError: bad day"),
        ("oops(", "SyntaxError"),
        ("", "broken"),
    ],
)
def test_a_broken_plugin_says_why_and_breaks_no_other_command(plugin: Path, content: str, reason: str) -> None:
    plugin.write_text(content)
    runner = CliRunner()
    answer = runner.invoke(group.main, ["broken"])
    assert answer.exit_code == 2
    assert reason in answer.output
    assert "Traceback" not in answer.output
    assert runner.invoke(group.main, ["--help"]).exit_code == 0
    assert runner.invoke(group.main, ["queue", "--help"]).exit_code == 0


def test_a_plugin_cannot_take_the_name_of_one_of_ours(plugin: Path) -> None:
    plugin.write_text("raise RuntimeError('loaded')")
    answer = CliRunner().invoke(group.main, ["submit", "--help"])
    assert answer.exit_code == 0
    assert "PROMPT" in answer.output


def test_the_producers_commands_load_no_worker_and_no_model_library() -> None:
    """Asked of a fresh interpreter, after every command's module is imported."""
    code = (
        "import importlib, json, sys; from tokenmill.cli import group; "
        "[importlib.import_module(module) for module, _ in group.OWN_COMMANDS.values()]; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    loaded = set(json.loads(output))
    assert not loaded & {"tokenmill_worker", "torch", "transformers", "numpy", "rq", "rich", "jinja2"}


def test_the_version_is_told() -> None:
    assert importlib.metadata.version("tokenmill") in tokenmill("--version").stdout
