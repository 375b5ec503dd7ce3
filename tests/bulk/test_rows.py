"""Reading a dataset: what a row is, and what becomes of a line that is none."""

from pathlib import Path

import pytest
from tokenmill.bulk.inputs import count_rows, open_rows
from tokenmill.bulk.rows import BadRow, InputError, Row
from tokenmill.bulk.spec import InputSpec


def of(path: Path) -> InputSpec:
    return InputSpec(paths=(str(path),))


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_json_line_is_a_row(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", '{"q": "a"}\n{"q": "b"}\n')
    assert list(open_rows(of(path))) == [Row(1, {"q": "a"}), Row(2, {"q": "b"})]


def test_the_last_line_needs_no_newline_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", '\n{"q": 1}\r\n   \n\n{"q": 2}')
    assert list(open_rows(of(path))) == [Row(1, {"q": 1}), Row(2, {"q": 2})]
    assert count_rows(of(path)) == 2


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    json_path = write(tmp_path, "rows.jsonl", b'\xef\xbb\xbf{"q": "a"}\n')
    csv_path = write(tmp_path, "rows.csv", b"\xef\xbb\xbfq\na\n")
    assert list(open_rows(of(json_path))) == list(open_rows(of(csv_path))) == [Row(1, {"q": "a"})]


def test_a_unicode_line_separator_inside_a_string_ends_no_row(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", '{"q": "one\u2028two\x85three"}\n')
    assert list(open_rows(of(path))) == [Row(1, {"q": "one\u2028two\x85three"})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{oops}", "not JSON"),
        (b'{"q": "cut off', "not JSON"),
        (b'{"q": NaN}', "NaN is not a JSON number"),
        (b'["a", "list"]', "must be a JSON object, this is an array"),
        (b'"text"', "this is a string"),
        (b"7", "this is a number"),
        (b'{"q": "\xff\xfe"}', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_says_why_and_its_neighbours_are_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path, "rows.jsonl", b'{"q": 1}\n' + line + b'\n{"q": 3}\n')
    before, bad, after = open_rows(of(path))
    assert (before, after) == (Row(1, {"q": 1}), Row(3, {"q": 3}))
    assert isinstance(bad, BadRow)
    assert bad.number == 2
    assert reason in bad.reason


def test_csv_fields_hold_quotes_commas_and_newlines(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.csv", 'id,q\r\n1,"He said ""hi"", twice\nand left"\r\n2,naïve 🙂\r\n')
    assert list(open_rows(of(path))) == [
        Row(1, {"id": "1", "q": 'He said "hi", twice\nand left'}),
        Row(2, {"id": "2", "q": "naïve 🙂"}),
    ]
    assert count_rows(of(path)) == 2


def test_tsv_is_split_at_tabs(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.tsv", "id\tq\n1\ta, b\n")
    assert list(open_rows(of(path))) == [Row(1, {"id": "1", "q": "a, b"})]


def test_a_csv_field_may_be_as_long_as_a_document(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.csv", "q\n" + "x" * 500_000 + "\n")
    assert list(open_rows(of(path))) == [Row(1, {"q": "x" * 500_000})]


def test_a_csv_record_with_a_wrong_number_of_fields_is_bad_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.csv", "a,b\n1\n1,2,3\n1,2\n")
    short, long, good = open_rows(of(path))
    assert isinstance(short, BadRow)
    assert isinstance(long, BadRow)
    assert "1 fields where the header names 2" in short.reason
    assert "3 fields where the header names 2" in long.reason
    assert good == Row(3, {"a": "1", "b": "2"})


def test_a_csv_record_with_a_stray_quote_or_bad_bytes_is_bad_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.csv", b'q\n"a" b\ncaf\xe9\ngood\n')
    quote, latin1, good = open_rows(of(path))
    assert isinstance(quote, BadRow)
    assert isinstance(latin1, BadRow)
    assert "not CSV" in quote.reason
    assert "not UTF-8" in latin1.reason
    assert good == Row(3, {"q": "good"})


@pytest.mark.parametrize(("content", "reason"), [("", "no header line"), ("a,b,a\n1,2,3\n", "names a column twice: a")])
def test_a_csv_file_without_a_usable_header_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        list(open_rows(of(write(tmp_path, "rows.csv", content))))


def test_a_file_of_unknown_format_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows\.docx: cannot tell the format"):
        list(open_rows(of(write(tmp_path, "rows.docx", "a"))))


def test_limit_counts_rows_and_reads_no_further(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", "{}\n\n{}\n{}\n")
    assert [row.number for row in open_rows(of(path), limit=2)] == [1, 2]
    assert count_rows(of(path), limit=2) == 2
    assert count_rows(of(path), limit=9) == 3


def test_a_header_alone_and_an_empty_jsonl_file_hold_no_rows(tmp_path: Path) -> None:
    assert list(open_rows(of(write(tmp_path, "rows.csv", "a,b\n")))) == []
    assert list(open_rows(of(write(tmp_path, "rows.jsonl", "")))) == []
