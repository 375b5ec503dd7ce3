"""The package's face: what it exports, and that importing it costs next to nothing."""

import subprocess
import sys

import pytest
import tokenmill


@pytest.mark.parametrize("name", tokenmill.__all__)
def test_every_exported_name_is_there(name: str) -> None:
    assert getattr(tokenmill, name).__name__ == name


def test_all_is_sorted_and_is_what_dir_shows() -> None:
    assert sorted(tokenmill.__all__) == tokenmill.__all__ == dir(tokenmill)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Clientt"):
        tokenmill.Clientt  # noqa: B018 (looking is the test)


def test_using_the_client_loads_no_command_line_and_no_model_library() -> None:
    code = "import tokenmill, sys; tokenmill.Client; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "redis" in modules
    assert not {"torch", "transformers", "tokenmill_worker", "click", "rich", "rq"} & set(modules)
