"""The checker itself: silent about a clean history, and loud about a violation of each invariant planted in it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tokenmill.wire.messages import DeltaEntry, TerminalEntry, Usage, stream_id

from tests.support.checker import RULES, check
from tests.support.history import (
    Accepted,
    Answer,
    DeadLetter,
    Effort,
    Expected,
    History,
    JobRecord,
    Reading,
    Rest,
    Said,
    Told,
)
from tests.support.ledger import Tenure, Writes

TEXT = "hello!"
ENTRIES = (
    Told(stream_id(0, 3), DeltaEntry(offset=0, text="hel", token_ids=(104, 101, 108)).encode()),
    Told(stream_id(0, 6), DeltaEntry(offset=3, text="lo!", token_ids=(108, 111, 33)).encode()),
    Told(
        stream_id(0, 6, terminal=True),
        TerminalEntry(type="done", finish_reason="length", text=TEXT, usage=Usage(completion_tokens=6)).encode(),
    ),
)


def clean() -> History:
    """One request, begun by a worker that died after three tokens and finished by another."""
    history = History(
        accepted={"q-1": Accepted("q-1", "{}")},
        expected={"q-1": Expected("q-1", (Said(tuple(TEXT.encode()), TEXT, "length"),))},
        streams={"q-1": Reading("", "q-1", ENTRIES)},
        jobs={"q-1": JobRecord("q-1", {"state": "done", "published": "6", "crashed": "0"})},
        readings=[Reading("r-1", "q-1", ENTRIES[:2]), Reading("r-2", "q-1", ENTRIES)],
        answers=[Answer("c-1", "q-1", tuple(entry.entry_id for entry in ENTRIES[:2]), TEXT, "length")],
        tenures=[Tenure("w-1", "q-1", 1, 0, 0), Tenure("w-2", "q-1", 3, 3, 0)],
        writes=[Writes("w-1", "q-1", 3, False, 1), Writes("w-2", "q-1", 6, True)],
        dead_letters=[DeadLetter({"id": "bad", "reason": "undecodable"})],
        guilty={"bad"},
        rest=Rest({"tm:{default.0}:in:2": 0}),
        effort=Effort(num_computed=8, num_losses=1, num_rows=1, window=2),
    )
    return history


def with_entries(history: History, *entries: Told) -> None:
    """The stream, and everybody who read all of it."""
    history.streams["q-1"] = Reading("", "q-1", entries)
    history.readings, history.answers = [], []


def with_job(history: History, **fields: str) -> None:
    history.jobs["q-1"] = JobRecord("q-1", {**history.jobs["q-1"].fields, **fields})


def changed(entry: Told, **fields: str) -> Told:
    return replace(entry, fields={**entry.fields, **fields})


def lose_the_final_word(history: History) -> None:
    with_entries(history, *ENTRIES[:2])


def lose_a_delta(history: History) -> None:
    with_entries(history, ENTRIES[0], ENTRIES[2])


def tell_a_reader_something_else(history: History) -> None:
    history.readings.append(Reading("r-3", "q-1", (changed(ENTRIES[0], text="HEL"),)))


def answer_a_client_something_else(history: History) -> None:
    history.answers[0] = replace(history.answers[0], text="hell")


def say_more_after_the_final_word(history: History) -> None:
    late = DeltaEntry(offset=6, text="?", token_ids=(63,))
    with_entries(history, *ENTRIES, Told(stream_id(0, 7), late.encode()))


def leave_an_entry_on_a_lane(history: History) -> None:
    history.rest = Rest({"tm:{default.0}:in:2": 1})


def leave_a_key_for_ever(history: History) -> None:
    history.rest = Rest({}, ("tm:{default.0}:r:q-1",))


def let_a_zombie_publish(history: History) -> None:
    history.writes[0].published = 5


def let_a_zombie_finish(history: History) -> None:
    history.writes[0].has_finished = True


def try_for_ever(history: History) -> None:
    history.tenures += [Tenure(f"w-{fence}", "q-1", fence, 3, 0) for fence in range(4, 40)]
    history.writes[1] = Writes("w-39", "q-1", 6, True)


def retry_too_often(history: History) -> None:
    with_job(history, failed="99")


def say_another_token(history: History) -> None:
    other = changed(ENTRIES[1], tokens=json.dumps([108, 111, 63]), text="lo?")
    with_entries(history, ENTRIES[0], other, changed(ENTRIES[2], text="hello?"))


def cut_the_text(history: History) -> None:
    with_entries(history, *ENTRIES[:2], changed(ENTRIES[2], text="hello"))


def cancel_unasked(history: History) -> None:
    with_entries(history, *ENTRIES[:2], changed(ENTRIES[2], type="cancelled", finish_reason="cancelled"))


def compute_it_all_again(history: History) -> None:
    history.effort = replace(history.effort, num_computed=12)


def bury_an_innocent(history: History) -> None:
    history.dead_letters.append(DeadLetter({"id": "q-1", "reason": "worker_crashed"}))


def give_an_innocent_up(history: History) -> None:
    with_job(history, state="dead")


PLANTED: list[tuple[str, Callable[[History], None]]] = [
    ("I1", lose_the_final_word),
    ("I2", lose_a_delta),
    ("I2", tell_a_reader_something_else),
    ("I2", answer_a_client_something_else),
    ("I3", say_more_after_the_final_word),
    ("I4", leave_an_entry_on_a_lane),
    ("I4", leave_a_key_for_ever),
    ("I5", let_a_zombie_publish),
    ("I5", let_a_zombie_finish),
    ("I6", try_for_ever),
    ("I6", retry_too_often),
    ("I7", say_another_token),
    ("I7", cut_the_text),
    ("I7", cancel_unasked),
    ("I8", compute_it_all_again),
    ("I9", bury_an_innocent),
    ("I9", give_an_innocent_up),
]


def test_a_clean_history_passes() -> None:
    assert check(clean()) == []


@pytest.mark.parametrize(("invariant", "plant"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_a_planted_violation_is_found(invariant: str, plant: Callable[[History], None]) -> None:
    history = clean()
    plant(history)
    assert invariant in {violation.invariant for violation in check(history)}


def test_every_invariant_has_a_violation_planted() -> None:
    assert {invariant for invariant, _ in PLANTED} == set(RULES) == {f"I{number}" for number in range(1, 10)}


def test_a_history_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    history = clean()
    history.cancelled.add("q-1")
    history.dump(tmp_path / "history.jsonl")
    assert History.load(tmp_path / "history.jsonl") == history
