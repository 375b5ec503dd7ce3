"""A run's rows as Parquet: input columns, then ours, each with the narrowest type that fits all of its values."""

import json
from collections.abc import Iterator
from typing import Any

from tokenmill.bulk.output import OutputError
from tokenmill.bulk.outputs.paths import OutputPaths
from tokenmill.bulk.outputs.replacing import replacing
from tokenmill.bulk.outputs.source import RunRows
from tokenmill.bulk.rows import JSON, Fields

_MIXED = "values of several kinds: written as JSON text"


def write_parquet(rows: RunRows, paths: OutputPaths) -> None:
    """Two passes over the run's rows: the first finds each column's type. OutputError: pyarrow is not installed."""
    pa = _import_pyarrow()
    kinds: dict[str, Any] = {}
    for chunk in rows.chunks():
        for name, values in _columns(chunk, dict.fromkeys(name for row in chunk for name in row)):
            kinds[name] = _common(pa, kinds.get(name), values)
    schema = pa.schema([(name, pa.string() if kind is _MIXED else kind) for name, kind in kinds.items()])
    with replacing(paths.out) as file, pa.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for chunk in rows.chunks():
            arrays = [_array(pa, values, kinds[name]) for name, values in _columns(chunk, kinds)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _columns(chunk: list[Fields], names: dict[str, Any]) -> Iterator[tuple[str, list[JSON]]]:
    for name in names:
        yield name, [row.get(name) for row in chunk]


def _common(pa: Any, so_far: Any, values: list[JSON]) -> Any:
    """The type of earlier values and these; _MIXED when there is none."""
    if so_far is _MIXED:
        return _MIXED
    try:
        kind = pa.array(values).type
        if so_far is not None and kind != so_far:
            parts = [pa.schema([("value", part)]) for part in (so_far, kind)]
            kind = pa.unify_schemas(parts, promote_options="permissive").field("value").type
    except (pa.ArrowException, OverflowError):  # text beside numbers; an integer beyond 64 bits
        return _MIXED
    return _MIXED if _has_empty_struct(pa, kind) else kind


def _has_empty_struct(pa: Any, kind: Any) -> bool:
    """Parquet cannot hold an object without any field."""
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_struct(pa, field.type) for field in kind)
    return bool(pa.types.is_list(kind)) and _has_empty_struct(pa, kind.value_type)


def _array(pa: Any, values: list[JSON], kind: Any) -> Any:
    if kind is not _MIXED:
        return pa.array(values, type=kind)
    texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return pa.array(texts, type=pa.string())


def _import_pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise OutputError("Parquet needs pyarrow: pip install 'tokenmill[bulk]'") from error
    return pyarrow
