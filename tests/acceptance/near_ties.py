"""Rows of two runs of a real model: equal, but for greedy choices that float32 cannot decide. Knows no run."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from tokenmill_worker.engine import Engine, EngineConfig, checkpoint, loading

from tests.verify.identity import MOST_NEAR_TIES, NEAR_TIE
from tests.verify.reference import Reference

Line = dict[str, Any]

GENERATED = ("text", "token_ids", "finish_reason", "usage")  # what another choice changes; all else must be equal


class Difference(NamedTuple):
    question: str
    ours: list[int]
    theirs: list[int]


def assert_same_but_for_near_ties(model: str, ours: Iterable[Line], theirs: Iterable[Line]) -> int:
    """Lines of two outputs in any order, with the prompt as `input.question`. How many differ, by a near-tie each."""
    one, other = _by_row(ours), _by_row(theirs)
    assert one.keys() == other.keys()
    assert all(_fixed(one[name]) == _fixed(other[name]) for name in one)
    different = [
        Difference(one[name]["input"]["question"], one[name]["token_ids"], other[name]["token_ids"])
        for name in one
        if one[name] != other[name]
    ]
    assert len(different) <= max(1, MOST_NEAR_TIES * len(one)), "too many to be chance"
    if different:
        _assert_near_ties(model, different)
    return len(different)


def _by_row(lines: Iterable[Line]) -> dict[str, Line]:
    return {f"{line['row_hash']} {line.get('sample')}": line for line in lines}


def _fixed(line: Line) -> Line:
    return {name: value for name, value in line.items() if name not in GENERATED}


def _assert_near_ties(model: str, different: Sequence[Difference]) -> None:
    """Teacher-forced: of two tokens whose logits float32 cannot tell apart, either is a right answer."""
    config = EngineConfig(model=model, dtype="float32")
    tokenizer = Engine(config).tokenizer
    reference = Reference(checkpoint.locate(model, cache_dir=loading.cache_dir(config)))
    for question, ours, theirs in different:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}])
        first = next(n for n, (one, other) in enumerate(zip_longest(ours, theirs)) if one != other)
        assert first < min(len(ours), len(theirs)), f"one answer goes on where the other ends: {question}"
        logits = reference.forced_logits(prompt, ours[: first + 1])[-1]
        assert abs(float(logits[ours[first]] - logits[theirs[first]])) < NEAR_TIE, f"no near-tie: {question}"
