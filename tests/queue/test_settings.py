"""Where a setting may come from, what wins, and how a mistake is told."""

import re
from pathlib import Path

import pytest
from tokenmill_worker.settings import SettingsError, WorkerSettings

EXAMPLE = Path(__file__).parents[2] / "configs" / "worker.toml"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WorkerSettings.model_fields:
        monkeypatch.delenv(f"TOKENMILL_{name.upper()}", raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "worker.toml"
    file.write_text('model = "from-file"\nqueue = "from-file"\nmax_num_seqs = 3\n')
    return file


def test_flags_win_over_environment_over_file_over_defaults(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENMILL_MODEL", "from-environment")
    monkeypatch.setenv("TOKENMILL_QUEUE", "from-environment")
    settings = WorkerSettings.read(config, {"model": "from-flag"})
    assert (settings.model, settings.queue, settings.max_num_seqs) == ("from-flag", "from-environment", 3)
    assert settings.max_num_batched_tokens == 512


def test_every_setting_can_be_given_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"lease_ttl_s": "2.5", "enable_prefix_caching": "false", "max_model_len": "100", "burst": "true"}
    for name, value in values.items():
        monkeypatch.setenv(f"TOKENMILL_{name.upper()}", value)
    settings = WorkerSettings.read(None, {})
    assert (settings.lease_ttl_s, settings.enable_prefix_caching, settings.max_model_len, settings.burst) == (
        2.5,
        False,
        100,
        True,
    )


def test_an_empty_variable_is_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENMILL_SERVED_MODEL_NAME", "")
    assert WorkerSettings.read(None, {}).served_model_name is None


def test_an_unknown_key_in_the_file_is_named(config: Path) -> None:
    config.write_text("max_seqs = 3\n")
    with pytest.raises(SettingsError, match=r"worker\.toml: unknown key 'max_seqs'"):
        WorkerSettings.read(config, {})


def test_a_file_that_is_no_toml_is_named(config: Path) -> None:
    config.write_text("model: echo\n")
    with pytest.raises(SettingsError, match=r"worker\.toml is not TOML"):
        WorkerSettings.read(config, {})


def test_a_bad_value_is_told_with_its_source(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("max_num_seqs = 0\n")
    with pytest.raises(SettingsError, match=r"worker\.toml: max_num_seqs: input should be greater"):
        WorkerSettings.read(config, {})
    monkeypatch.setenv("TOKENMILL_MAX_NUM_SEQS", "many")
    with pytest.raises(SettingsError, match="TOKENMILL_MAX_NUM_SEQS: max_num_seqs: input should be a valid integer"):
        WorkerSettings.read(config, {})
    with pytest.raises(SettingsError, match="--max-num-seqs: max_num_seqs: input should be"):
        WorkerSettings.read(config, {"max_num_seqs": -1})


def test_the_settings_are_frozen() -> None:
    settings = WorkerSettings.read(None, {})
    with pytest.raises(ValueError, match="frozen"):
        settings.model = "another"


def test_the_example_file_gives_the_defaults() -> None:
    assert WorkerSettings.read(EXAMPLE, {}) == WorkerSettings.read(None, {})


def test_the_example_file_explains_every_key() -> None:
    keys = re.findall(r"^(?:# )?([a-z_]+) = ", EXAMPLE.read_text(), flags=re.MULTILINE)
    assert keys == list(WorkerSettings.model_fields)


def test_every_setting_says_what_it_means() -> None:
    assert all(field.description for field in WorkerSettings.model_fields.values())
