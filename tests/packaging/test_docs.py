"""What the documents say against what the code is: settings, key names, scripts, links. Knows no prose."""

import re
from pathlib import Path

import pytest
from tokenmill.cli.server_checks import FOR_RUNS_ACL, LEAST_ACL
from tokenmill.wire import keys
from tokenmill.wire.keys import FETCH_ORDER, GateKeys, Keys, Lane, RunKeys

from docs.generate import PAGE, settings_table, with_table

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))]


def test_the_settings_table_is_that_of_the_settings_class() -> None:
    page = PAGE.read_text()
    assert page == with_table(page), "run: python -m docs.generate"


def test_the_settings_of_the_gpu_page_are_rows_of_that_table() -> None:
    rows = re.findall(r"^\| `\w+` \| `TOKENMILL_.*$", (ROOT / "docs" / "gpu.md").read_text(), re.MULTILINE)
    assert rows
    assert [row for row in rows if row not in settings_table()] == []


def documented_names() -> set[str]:
    """Every key name of docs/protocol.md, with `T` for the tag as there."""
    return set(re.findall(r"`tm:(T:[^`\s]+)`", (ROOT / "docs" / "protocol.md").read_text()))


def actual_names() -> set[str]:
    keys = Keys(queue="default", partition=0)
    names = [
        *(keys.lane(lane) for lane in [*FETCH_ORDER, Lane.QUARANTINE]),
        *(
            keys.job("<id>"),
            keys.result("<id>"),
            keys.note("<id>"),
            keys.bell("<listener>"),
            keys.workers,
            keys.dead_workers,
            keys.worker_info("<worker>"),
        ),
        *(keys.cancels("<worker>"), keys.deadlines, keys.not_before, keys.group("<group>")),
        *(keys.group_done("<group>"), keys.dead, keys.count, keys.mark),
        *(keys.watch, keys.picture("<worker>")),
    ]
    return {name.replace(keys.tag, "T:") for name in names}


def test_the_protocol_page_names_every_key_and_no_other() -> None:
    assert documented_names() == actual_names()


def test_the_protocol_page_names_every_key_of_a_bulk_run_and_no_other() -> None:
    documented = set(re.findall(r"`(tm:\{bulk\}[^`\s]+)`", (ROOT / "docs" / "protocol.md").read_text()))
    keys = RunKeys()
    assert documented == {keys.run("<run>"), keys.leases, keys.limits, keys.usage("<tenant>", "<day>")}


def test_the_protocol_page_names_every_key_of_the_gateway_and_no_other() -> None:
    documented = set(re.findall(r"`(tm:\{gate\}[^`\s]+)`", (ROOT / "docs" / "protocol.md").read_text()))
    keys = GateKeys()
    assert documented == {keys.keys, keys.use("<key>")}


def test_the_protocol_page_names_every_transition_that_others_rely_on() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    scripts = {script.stem for script in (ROOT / "producer/tokenmill/wire/scripts").glob("*.lua")} - {"lib"}
    assert {name for name in scripts if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_of_the_project_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    targets = [target for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text) if "://" not in target]
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []


def test_the_documents_name_only_make_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"`?make ([a-z-]+)", "\n".join(commands_of(page))):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page}: make {target}"


def commands_of(page: str) -> list[str]:
    """Code spans and the lines of code blocks."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL)
    return [*blocks, *re.findall(r"`[^`\n]+`", text)]


def test_the_operations_page_has_the_least_acl_rule_that_doctor_prints() -> None:
    text = " ".join((ROOT / "docs" / "operations.md").read_text().split())
    assert LEAST_ACL in text
    assert FOR_RUNS_ACL in text


def test_the_protocol_page_says_how_long_keys_live_and_how_often_is_tried() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    tried = ", ".join(str(backoff_ms // 1000) for backoff_ms in keys.RETRY_BACKOFF_MS)
    assert f"come again after {tried} s" in text
    assert f"about the last {keys.DEAD_MAXLEN:,}" in text
    assert f"tried again {keys.MAX_RETRIES} times" in text
    assert f"After {keys.MAX_CRASHES} of these it goes to lane q" in text
