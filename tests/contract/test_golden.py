"""The wire as version 1 has it, byte for byte: other languages and older workers read these very bytes.

A change that breaks this file breaks them. Add a golden file for the new version, and keep reading the old one.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenmill.wire.keys import Keys, Lane
from tokenmill.wire.messages import PROTOCOL_VERSION, Request, decode_entry, encode_plain

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("golden_v1.json").read_text())


def test_the_golden_file_is_of_this_version() -> None:
    assert GOLDEN["version"] == PROTOCOL_VERSION


@pytest.mark.parametrize("case", GOLDEN["requests"], ids=lambda case: case["name"])
def test_a_request_has_these_bytes(case: dict[str, Any]) -> None:
    request = Request.build(**case["fields"])
    assert request.encode().decode() == case["body"]
    assert request.digest == case["digest"]
    assert Request.decode(case["body"].encode()) == request


@pytest.mark.parametrize("case", GOLDEN["requests"], ids=lambda case: case["name"])
def test_the_short_way_writes_the_same_bytes_or_none(case: dict[str, Any]) -> None:
    plain = encode_plain(case["fields"])
    assert plain is None or plain.body.decode() == case["body"]


@pytest.mark.parametrize("case", GOLDEN["entries"], ids=lambda case: case["name"])
def test_a_result_entry_has_these_fields(case: dict[str, Any]) -> None:
    fields: dict[str, str] = case["fields"]
    entry = decode_entry("1-0", {name.encode(): value.encode() for name, value in fields.items()})
    assert entry.encode() == fields


def test_keys_have_these_names() -> None:
    keys = Keys("default")
    names = {
        "lanes": [keys.lane(lane) for lane in Lane],
        "job": keys.job("q-1"),
        "result": keys.result("q-1"),
        "workers": keys.workers,
        "dead_workers": keys.dead_workers,
        "worker_info": keys.worker_info("w"),
        "cancels": keys.cancels("w"),
        "deadlines": keys.deadlines,
        "not_before": keys.not_before,
        "group": keys.group("g"),
        "group_done": keys.group_done("g"),
        "mark": keys.mark,
        "dead": keys.dead,
    }
    assert names == GOLDEN["keys"]
