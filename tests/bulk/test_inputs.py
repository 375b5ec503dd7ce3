"""Where rows come from: columnar files, archives, folders, globs, URLs, saved datasets, stdin."""

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenmill.bulk.inputs import count_rows, open_rows
from tokenmill.bulk.inputs.hub import HubName, parse_hub_name
from tokenmill.bulk.inputs.resolve import resolve_input, spool_stdin
from tokenmill.bulk.rows import BadRow, InputError, Row
from tokenmill.bulk.spec import InputSpec

TWO = [{"q": "a"}, {"q": "b"}]
LINES = b'{"q": "a"}\n{"q": "b"}\n'


def of(*paths: object, format: str | None = None) -> InputSpec:
    return InputSpec(paths=tuple(map(str, paths)), format=format)


def fields_of(*paths: object, format: str | None = None) -> list[object]:
    return [row.fields if isinstance(row, Row) else row for row in open_rows(of(*paths, format=format))]


def write_parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def write_arrow_file(path: Path, table: pa.Table) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def write_arrow_stream(path: Path, table: pa.Table) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


# --- columnar files ---


def test_parquet_rows_are_numbered_and_counted_over_batches(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", n=range(3_000))
    rows = list(open_rows(of(path)))
    assert rows[2_999] == Row(3_000, {"n": 2_999})
    assert [row.number for row in rows] == list(range(1, 3_001))
    assert count_rows(of(path)) == 3_000
    assert count_rows(of(path), limit=7) == len(list(open_rows(of(path), limit=7))) == 7


@pytest.mark.parametrize("write", [write_arrow_file, write_arrow_stream])
def test_arrow_files_and_streams_are_told_apart_by_their_bytes(
    tmp_path: Path, write: Callable[[Path, pa.Table], Path]
) -> None:
    path = write(tmp_path / "rows.arrow", pa.table({"n": [1, 2, 3]}))
    assert fields_of(path) == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert count_rows(of(path)) == 3


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (b"\x00\xff", pa.binary(), "AP8="),
        (b"ab", pa.binary(2), "YWI="),
        (float("nan"), pa.float64(), "NaN"),
        (float("-inf"), pa.float32(), "-Infinity"),
        (0.5, pa.float16(), 0.5),
        (Decimal("1.20"), pa.decimal128(5, 2), "1.20"),
        (date(2026, 11, 23), pa.date32(), "2026-11-23"),
        (date(2026, 11, 23), pa.date64(), "2026-11-23"),
        (datetime(2026, 11, 23, 10, 30), pa.timestamp("s"), "2026-11-23T10:30:00"),
        (datetime(2026, 11, 23, 10, 30, tzinfo=UTC), pa.timestamp("us", "Europe/Paris"), "2026-11-23T10:30:00Z"),
        (1_500_000_001, pa.timestamp("ns"), "1970-01-01T00:00:01.500000001"),
        (time(10, 30, 0, 500_000), pa.time64("us"), "10:30:00.5"),
        (time(10, 30), pa.time32("s"), "10:30:00"),
        (timedelta(seconds=90), pa.duration("ms"), 90),
        (1, pa.duration("ns"), 1e-9),
        (2**64 - 1, pa.uint64(), 2**64 - 1),
        ([{"at": 0, "is": b"x"}], pa.list_(pa.struct([("at", pa.timestamp("ms")), ("is", pa.binary())])), None),
        ([("a", 1.0), ("b", None)], pa.map_(pa.string(), pa.float64()), {"a": 1.0, "b": None}),
        ([(1, "x")], pa.map_(pa.int8(), pa.string()), [[1, "x"]]),
        (None, pa.timestamp("ns"), None),
        ({}, pa.struct([]), {}),
    ],
    ids=lambda value: str(value)[:24] if isinstance(value, pa.DataType) else "",
)
def test_each_arrow_value_has_one_form_in_json(tmp_path: Path, value: Any, kind: Any, expected: Any) -> None:
    if isinstance(value, list) and expected is None:
        expected = [{"at": "1970-01-01T00:00:00", "is": "eA=="}]
    path = write_arrow_file(tmp_path / "rows.arrow", pa.table({"v": pa.array([value], kind)}))
    (row,) = fields_of(path)
    assert row == {"v": expected}
    json.dumps(row, allow_nan=False)


def test_categories_are_their_values(tmp_path: Path) -> None:
    table = pa.table({"v": pa.array(["x", "y", "x"]).dictionary_encode()})
    assert fields_of(write_arrow_file(tmp_path / "rows.arrow", table)) == [{"v": "x"}, {"v": "y"}, {"v": "x"}]


def test_a_value_that_json_cannot_have_spoils_its_row_alone(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0\4\0\0\0"), pa.py_buffer(b"a\xff\xfec")]
    )
    late = pa.array([0, 0, 2**62], pa.timestamp("s"))
    path = write_arrow_file(tmp_path / "rows.arrow", pa.table({"n": [1, 2, 3], "text": broken, "at": late}))
    good, not_text, too_late = open_rows(of(path))
    assert good == Row(1, {"n": 1, "text": "a", "at": "1970-01-01T00:00:00"})
    assert isinstance(not_text, BadRow)
    assert "column 'text': not UTF-8" in not_text.reason
    assert not_text.source == {"n": 2, "at": "1970-01-01T00:00:00"}
    assert isinstance(too_late, BadRow)
    assert "column 'at'" in too_late.reason


def test_a_column_whose_type_has_no_form_in_json_is_named(tmp_path: Path) -> None:
    union = pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])])
    path = write_arrow_file(tmp_path / "rows.arrow", pa.table({"mixed": union}))
    with pytest.raises(InputError, match="column 'mixed'"):
        fields_of(path)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "rows.jsonl.gz", "rows.jsonl.zst", "rows.csv.xz"])
def test_a_damaged_file_is_told_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not what the name says")
    with pytest.raises(InputError, match=name):
        fields_of(tmp_path / name)
    with pytest.raises(InputError, match=name):
        count_rows(of(tmp_path / name))


def test_a_file_that_ends_too_early_gives_its_rows_and_then_the_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress(LINES * 20_000, compresslevel=0)
    path.write_bytes(whole[: len(whole) // 2])
    rows = open_rows(of(path))
    assert next(rows) == Row(1, {"q": "a"})
    with pytest.raises(InputError, match="cannot be read"):
        list(rows)


# --- archives, folders, globs, URLs ---


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_packed_text_is_unpacked_by_its_suffix(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    lines, table = tmp_path / f"rows.jsonl{suffix}", tmp_path / f"rows.csv{suffix}"
    lines.write_bytes(pack(LINES))
    table.write_bytes(pack(b"q\na\nb\n"))
    assert fields_of(lines) == fields_of(table) == TWO
    assert count_rows(of(lines)) == 2


def test_a_folder_gives_its_known_files_in_order_and_leaves_out_what_a_run_wrote(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.csv").write_text("q\nc\n")
    (tmp_path / "b.jsonl").write_bytes(b'{"q": "b"}\n')
    write_parquet(tmp_path / "a.parquet", q=["a"])
    for name in ("README.md", ".hidden.jsonl", "out.jsonl"):
        (tmp_path / name).write_bytes(LINES)
    (tmp_path / "out.jsonl.tokenmill").mkdir()
    (tmp_path / "out.jsonl.tokenmill" / "rows.jsonl").write_bytes(LINES)
    rows = list(open_rows(of(tmp_path), exclude=[tmp_path / "out.jsonl"]))
    assert rows == [Row(1, {"q": "a"}), Row(2, {"q": "b"}), Row(3, {"q": "c"})]
    assert count_rows(of(tmp_path), exclude=[tmp_path / "out.jsonl"]) == 3


def test_globs_are_sorted_and_several_paths_keep_their_order(tmp_path: Path) -> None:
    for name in ("2", "1", "3"):
        (tmp_path / f"part-{name}.jsonl").write_text(json.dumps({"q": name}) + "\n")
    (tmp_path / "part-0.md").write_text("no rows")
    assert fields_of(tmp_path / "part-*") == [{"q": "1"}, {"q": "2"}, {"q": "3"}]
    assert fields_of(tmp_path / "part-3.jsonl", tmp_path / "**" / "part-1*") == [{"q": "3"}, {"q": "1"}]


def test_a_file_may_be_called_like_a_glob(tmp_path: Path) -> None:
    (tmp_path / "rows[1].jsonl").write_bytes(LINES)
    assert fields_of(tmp_path / "rows[1].jsonl") == TWO


@pytest.mark.parametrize("name", ["missing.jsonl", "*.jsonl", "missing/"])
def test_nothing_there_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"no such file|holds no file"):
        fields_of(tmp_path / name)


def test_a_format_that_is_said_wins_over_the_name(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_bytes(LINES)
    assert fields_of(tmp_path / "rows.txt", format="jsonl") == TWO
    with pytest.raises(InputError, match="no format 'xml'"):
        fields_of(tmp_path / "rows.txt", format="xml")


def test_urls_name_files_folders_and_globs() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/in/b.jsonl": b'{"q": "b"}\n', "/in/a.jsonl.gz": gzip.compress(b'{"q": "a"}\n'), "/in/x.md": b""})
    sink = io.BytesIO()
    pq.write_table(pa.table({"q": ["c"]}), sink)
    memory.pipe("/in/c.parquet", sink.getvalue())
    assert fields_of("memory://in") == [*TWO, {"q": "c"}]
    assert fields_of("memory://in/*.jsonl*") == TWO
    assert fields_of("memory://in/c.parquet") == [{"q": "c"}]
    assert count_rows(of("memory://in")) == 3
    with pytest.raises(InputError, match=r"memory://in/none\.jsonl"):
        fields_of("memory://in/none.jsonl")


@pytest.mark.parametrize("url", ["nosuch://bucket/rows.jsonl", "file:///nowhere/rows.jsonl"])
def test_a_url_that_cannot_be_opened_is_told(url: str) -> None:
    with pytest.raises(InputError, match=url):
        fields_of(url)


# --- datasets of Hugging Face ---


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("hf://gsm8k", HubName("gsm8k", None, None, "train")),
        ("hf://openai/gsm8k:test", HubName("openai/gsm8k", None, None, "test")),
        ("hf://openai/gsm8k/main:test", HubName("openai/gsm8k", None, "main", "test")),
        ("hf://openai/gsm8k@abc/main:test[:10]", HubName("openai/gsm8k", "abc", "main", "test[:10]")),
    ],
)
def test_a_name_on_the_hub(url: str, expected: HubName) -> None:
    assert parse_hub_name(url) == expected


def test_a_name_that_the_hub_cannot_have_is_refused() -> None:
    with pytest.raises(InputError, match="hf://owner/name"):
        parse_hub_name("hf://a/b/c/d")


def test_a_dataset_is_streamed_by_the_library(tmp_path: Path) -> None:
    """A folder stands in for the hub: the library takes both alike."""
    (tmp_path / "train.jsonl").write_bytes(LINES)
    assert fields_of(f"hf://{tmp_path}:train") == TWO
    with pytest.raises(InputError, match="nosplit"):
        fields_of(f"hf://{tmp_path}:nosplit")


def test_a_saved_dataset_is_read_shard_by_shard(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_dict({"n": list(range(25))})
    whole.save_to_disk(tmp_path / "one", num_shards=3)
    assert fields_of(tmp_path / "one") == [{"n": n} for n in range(25)]
    assert count_rows(of(tmp_path / "one")) == 25
    datasets.DatasetDict({"train": whole, "test": whole.select(range(2))}).save_to_disk(tmp_path / "two")
    assert fields_of(tmp_path / "two" / "test") == [{"n": 0}, {"n": 1}]
    with pytest.raises(InputError, match=r"several splits: name one of .*two/train"):
        fields_of(tmp_path / "two")


# --- stdin ---


def test_stdin_is_kept_for_the_next_run(tmp_path: Path) -> None:
    copy = spool_stdin(io.BytesIO(LINES), tmp_path / "run", None)
    assert fields_of(copy) == TWO
    assert spool_stdin(io.BytesIO(b""), tmp_path / "run", None) == copy
    assert fields_of(copy) == TWO
    spool_stdin(io.BytesIO(b'{"q": "new"}\n'), tmp_path / "run", None)
    assert fields_of(copy) == [{"q": "new"}]
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["stdin.jsonl"]


def test_an_openai_batch_file_is_known_by_its_first_line(tmp_path: Path) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}
    (tmp_path / "batch.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    assert resolve_input(of(tmp_path / "batch.jsonl"), folder=tmp_path).format == "openai"
    assert resolve_input(of(tmp_path / "batch.jsonl"), folder=tmp_path, is_prompt_given=True).format is None
    assert resolve_input(of(tmp_path / "rows.jsonl"), folder=tmp_path).format is None
    assert resolve_input(of(tmp_path / "batch.jsonl", format="jsonl"), folder=tmp_path).format == "jsonl"
