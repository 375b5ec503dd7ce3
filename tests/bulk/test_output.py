"""The output file: what survives a crash, who may write, and what a run refuses to mix."""

import json
import os
from pathlib import Path

import pytest
from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.output import OutputError, OutputFile, scratch_folder
from tokenmill.bulk.rows import Fields

RECIPE = Recipe(column="q", sampling={"max_tokens": 8})


def row(name: str) -> Fields:
    return {"row_hash": name, "text": f"naïve 🙂\u2028{name}"}


def test_a_row_is_readable_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "out.jsonl", RECIPE) as output:
        output.append(row("a"))
        assert json.loads((tmp_path / "out.jsonl").read_bytes()) == row("a")


def test_a_later_run_finds_the_rows_and_keeps_the_run_id(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "out.jsonl", RECIPE) as output:
        starts = [output.append(row(name)) for name in "abc"]
        run_id = output.run_id
    with OutputFile(tmp_path / "out.jsonl", RECIPE) as output:
        assert list(output.done_rows()) == list(zip(starts, "abc", strict=True))
        assert output.run_id == run_id


@pytest.mark.parametrize("torn", [b'{"row_hash": "b", "te', b'{"row_hash": "b"}', b"x" * 200_000])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "out.jsonl"
    with OutputFile(path, RECIPE) as output:
        output.append(row("a"))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with OutputFile(path, RECIPE) as output:
        assert path.read_bytes() == whole
        assert output.append(row("b")) == len(whole)
        assert [done.row_hash for done in output.done_rows()] == ["a", "b"]


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    OutputFile(path, RECIPE).close()
    path.write_bytes(b'{"row_ha')
    with OutputFile(path, RECIPE) as output:
        assert list(output.done_rows()) == []


def test_a_second_run_on_the_same_file_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with OutputFile(path, RECIPE), pytest.raises(OutputError, match=f"another run .process {os.getpid()}"):
        OutputFile(path, RECIPE)
    OutputFile(path, RECIPE).close()


def test_a_file_that_no_run_wrote_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("my thesis, no newline at the end")
    with pytest.raises(OutputError, match="no run wrote it"):
        OutputFile(path, RECIPE)
    assert path.read_text() == "my thesis, no newline at the end"


def test_other_settings_for_the_same_file_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with OutputFile(path, RECIPE) as output:
        output.append(row("a"))
    with pytest.raises(OutputError, match="max_tokens was 8, now 9"):
        OutputFile(path, Recipe(column="q", sampling={"max_tokens": 9}))


def test_a_removed_output_starts_a_new_run(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with OutputFile(path, RECIPE) as output:
        run_id = output.run_id
    path.unlink()
    with OutputFile(path, Recipe(column="p")) as output:
        assert output.run_id != run_id


def test_a_run_killed_before_its_first_row_keeps_its_run_id(tmp_path: Path) -> None:
    """Its requests may be on the server: under the same ids they are not paid twice."""
    with OutputFile(tmp_path / "out.jsonl", RECIPE) as output:
        run_id = output.run_id
    with OutputFile(tmp_path / "out.jsonl", RECIPE) as output:
        assert output.run_id == run_id


def test_a_line_in_the_middle_that_is_no_row_is_told_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with OutputFile(path, RECIPE) as output:
        output.append(row("a"))
    path.write_bytes(path.read_bytes() + b"edited by hand\n")
    with OutputFile(path, RECIPE) as output, pytest.raises(OutputError, match="line 2"):
        list(output.done_rows())


def test_reordering_replaces_the_file_and_appending_goes_on(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "out.jsonl", RECIPE) as output:
        a, b, c = (output.append(row(name)) for name in "abc")
        output.reorder([c, a, b])
        output.append(row("d"))
        assert [done.row_hash for done in output.done_rows()] == ["c", "a", "b", "d"]


def test_failed_rows_go_to_a_file_of_their_own_made_anew_by_each_run(tmp_path: Path) -> None:
    errors = tmp_path / "out.errors.jsonl"
    with OutputFile(tmp_path / "out.jsonl", RECIPE) as output:
        output.append_error({"row": 1})
        output.append_error({"row": 2})
    assert [json.loads(line) for line in errors.read_bytes().splitlines()] == [{"row": 1}, {"row": 2}]
    OutputFile(tmp_path / "out.jsonl", RECIPE).close()
    assert not errors.exists()


def test_an_unwritable_place_is_told_clearly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        OutputFile(tmp_path / "file" / "out.jsonl", RECIPE)


def test_scratch_left_by_a_killed_run_is_removed(tmp_path: Path) -> None:
    (scratch_folder(tmp_path / "out.jsonl", "server") / "old").write_text("")
    assert list(scratch_folder(tmp_path / "out.jsonl", "server").iterdir()) == []
