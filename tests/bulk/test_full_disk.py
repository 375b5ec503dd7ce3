"""A full disk, wherever it shows: the run ends with the reason, no reader sees half a line, the next one goes on."""

import errno
import os
from pathlib import Path

import pytest
from tokenmill.bulk.output import OutputFile, folder_of

from tests.bulk.test_run import FakeQueue, inputs_of, lines_of, questions, run, write_rows

ROOM_BYTES = 1_500  # a few rows


class FullDisk:
    """`pwrite` that has room for so many bytes in all: of what does not fit it takes a part, and then nothing."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._pwrite = os.pwrite

    def pwrite(self, file: int, data: bytes, start: int) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._pwrite(file, data[: self.room], start)
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, ROOM_BYTES, ROOM_BYTES + 7])
def test_a_run_on_a_full_disk_ends_with_the_reason_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    path = write_rows(tmp_path, questions(*range(30)))
    run(path, FakeQueue(), limit=1)
    with monkeypatch.context() as patched:
        disk = FullDisk(room)
        # The lock file is written by pwrite as well, before any row.
        patched.setattr(OutputFile, "_acquire_lock", lambda output: os.open(output.folder / "lock", os.O_RDWR))
        patched.setattr(os, "pwrite", disk.pwrite)
        with pytest.raises(OSError, match="No space left") as caught:
            run(path, FakeQueue())
    assert caught.value.errno == errno.ENOSPC
    num_done = len(lines_of(tmp_path / "out.jsonl"))  # every line is whole, though the disk took half of one
    queue = FakeQueue()
    assert run(path, queue).num_skipped == num_done
    assert inputs_of(path) == questions(*range(30))
    assert len(queue.sent) == 30 - num_done


def test_no_room_for_a_second_copy_leaves_the_rows_unordered_and_the_next_run_orders_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path, questions(*range(30)))

    def refuse(file: int) -> None:
        if "ordered" in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space left"):
            run(path, FakeQueue(seed=1), window=30)
    assert not (folder_of(tmp_path / "out.jsonl") / "ordered.jsonl").exists()
    assert run(path, None).num_skipped == 30
    assert inputs_of(path) == questions(*range(30))


def test_no_room_for_the_report_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(output: OutputFile, name: str, text: str) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(OutputFile, "write_beside", refuse)
    assert run(write_rows(tmp_path, questions("a")), FakeQueue()).num_done == 1
