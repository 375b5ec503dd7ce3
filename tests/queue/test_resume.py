"""What earlier workers told, read back: per choice, and only since the last reset."""

import pytest
from tokenmill.wire.errors import DecodeError
from tokenmill.wire.messages import DeltaEntry, ResetEntry
from tokenmill_worker.queue.admission import ToldChoice
from tokenmill_worker.queue.resume import StreamEntry, told_choices


def stream(*entries: DeltaEntry | ResetEntry) -> list[StreamEntry]:
    return [
        (f"{number}-0".encode(), {name.encode(): value.encode() for name, value in entry.encode().items()})
        for number, entry in enumerate(entries, start=1)
    ]


def test_deltas_are_put_together_per_choice() -> None:
    entries = stream(
        DeltaEntry(offset=0, token_ids=(1, 2), text="ab"),
        DeltaEntry(offset=2, token_ids=(7,), text="x", index=1, finish_reason="stop"),
        DeltaEntry(offset=3, token_ids=(3,), text="c"),
    )
    assert told_choices(entries, num_choices=2) == (ToldChoice("abc", (1, 2, 3)), ToldChoice("x", (7,), "stop"))


def test_what_came_before_a_reset_does_not_count() -> None:
    entries = stream(
        DeltaEntry(offset=0, token_ids=(1,), text="old"), ResetEntry(), DeltaEntry(offset=0, token_ids=(2,), text="new")
    )
    assert told_choices(entries, num_choices=1) == (ToldChoice("new", (2,)),)


def test_an_entry_that_is_not_ours_is_refused() -> None:
    with pytest.raises(DecodeError):
        told_choices([(b"1-0", {b"type": b"nonsense"})], num_choices=1)
