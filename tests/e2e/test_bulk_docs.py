"""What docs/bulk-formats.md says that goes in and comes out does: every form of its tables and options is run once."""

import bz2
import gzip
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from tests.e2e.commands import tokenmill_here

DOCUMENT = Path(__file__).parents[2] / "docs" / "bulk-formats.md"
TABLE = pa.table({"question": ["one", "two"], "heat": [0.5, 0.0]})
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in TABLE.to_pylist())
CSV = b"question,heat\none,0.5\ntwo,0.0\n"

WRITERS: dict[str, Callable[[Path], object]] = {
    "jsonl": lambda path: path.write_bytes(LINES),
    "ndjson": lambda path: path.write_bytes(LINES),
    "csv": lambda path: path.write_bytes(CSV),
    "tsv": lambda path: path.write_bytes(CSV.replace(b",", b"\t")),
    "parquet": lambda path: pa.parquet.write_table(TABLE, path),
    "arrow": lambda path: pa.feather.write_feather(TABLE, str(path)),
    "feather": lambda path: pa.feather.write_feather(TABLE, str(path)),
    "ipc": lambda path: pa.feather.write_feather(TABLE, str(path)),
    "gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "bz2": lambda path: path.write_bytes(bz2.compress(LINES)),
    "xz": lambda path: path.write_bytes(lzma.compress(LINES)),
    "zst": lambda path: path.write_bytes(pa.compress(LINES, "zstd", asbytes=True)),
}
PACKED = ("gz", "bz2", "xz", "zst")


def test_every_suffix_of_the_document_is_one_dataset_together(served: tuple[str, ...], tmp_path: Path) -> None:
    inputs, _, _ = DOCUMENT.read_text().partition("| output |")
    suffixes = set(re.findall(r"`(?:rows)?\.(\w+)`", inputs))
    assert suffixes == WRITERS.keys()
    data = tmp_path / "data"
    data.mkdir()
    for suffix in suffixes:
        WRITERS[suffix](data / (f"rows.jsonl.{suffix}" if suffix in PACKED else f"rows.{suffix}"))
    out = tmp_path / "out.jsonl"
    options = ("--column", "question", "--max-tokens", 2, *served)
    for source in (data, f"{data}/**/*"):
        report = tokenmill_here("bulk", "run", source, "--out", out, *options)
        assert report.returncode == 0, report.stderr
    assert out.read_bytes().count(b"\n") == 2 * len(suffixes)


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "x.csv"])
def test_every_output_has_its_columns(served: tuple[str, ...], tmp_path: Path, name: str) -> None:
    source, out = tmp_path / "rows.csv", tmp_path / name
    source.write_bytes(CSV)
    prompts = ("--template", "{{ question }}?", "--system", "Be brief", "--params-from", "temperature=heat")
    report = tokenmill_here("bulk", "run", source, "--out", out, *prompts, "--max-tokens", 2, *served)
    assert report.returncode == 0, report.stderr
    told = re.search(r"the input's columns, then ((?:`\w+`(?:, )?)+)", DOCUMENT.read_text())
    assert told is not None
    columns = ["question", "heat", *re.findall(r"`(\w+)`", told[1])]
    if name == "x.parquet":
        assert pa.parquet.read_table(out).column_names == columns
    elif name == "x.csv":
        assert pa.csv.read_csv(out).column_names == columns
    else:
        assert [json.loads(line)["input"]["question"] for line in out.read_bytes().splitlines()] == ["one", "two"]
