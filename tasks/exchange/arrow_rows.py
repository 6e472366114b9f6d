"""Rows of the catalog as Arrow tables, each column by its type: what Parquet files of an archive hold."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from sqlalchemy import JSON, Boolean, Column, Float, Integer, Table, Text

from infra.catalog.tables.schema import UtcDateTime, Vector

BATCH = 2000


class UnreadableTable(ValueError):
    """A Parquet file has not the columns that the catalog's table has."""


def schema_of(table: Table, without: Collection[str] = ()) -> pa.Schema:
    """The Arrow schema of a table of the catalog, without some of its columns."""
    return pa.schema([(c.name, _type(c)) for c in table.columns if c.name not in without])


def write_rows(file: IO[bytes], schema: pa.Schema, pages: Iterable[Sequence[Mapping[str, Any]]]) -> int:
    """Write pages of rows as Parquet, and return how many rows there were."""
    count = 0
    with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for page in pages:
            columns = [[_plain(row[name], schema.field(name).type) for row in page] for name in schema.names]
            writer.write_table(pa.table(columns, schema=schema))
            count += len(page)
    return count


def read_rows(file: IO[bytes], table: Table, without: Collection[str] = ()) -> Iterator[list[dict[str, Any]]]:
    """The rows of a Parquet file for a table, in pages. Columns that the file lacks are left to the table's defaults.

    Raises:
        UnreadableTable: if it has a column of another type, or one that the table has not.
    """
    wanted = schema_of(table, without)
    try:
        parquet = pyarrow.parquet.ParquetFile(file)
        found = parquet.schema_arrow
        for field in found:
            if field.name not in wanted.names or field.type != wanted.field(field.name).type:
                raise UnreadableTable(f"{table.name} has an unknown column {field.name} ({field.type})")
        for batch in parquet.iter_batches(BATCH):
            columns = {name: _values(table.columns[name], batch.column(name)) for name in found.names}
            yield [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    except (pa.ArrowException, OSError, json.JSONDecodeError) as error:
        raise UnreadableTable(f"{table.name} cannot be read: {error}") from error


def column(file: IO[bytes], name: str) -> list[Any]:
    """One column of a Parquet file."""
    values: list[Any] = pyarrow.parquet.read_table(file, columns=[name]).column(name).to_pylist()
    return values


def _type(column: Column[Any]) -> pa.DataType:
    kinds: tuple[tuple[type, pa.DataType], ...] = (
        (Vector, pa.list_(pa.float32())),
        (UtcDateTime, pa.timestamp("us", tz="UTC")),
        (JSON, pa.string()),
        (Boolean, pa.bool_()),
        (Integer, pa.int64()),
        (Float, pa.float64()),
        (Text, pa.string()),
    )
    return next(arrow for kind, arrow in kinds if isinstance(column.type, kind))


def _plain(value: Any, kind: pa.DataType) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) and kind == pa.string() else value


def _values(column: Column[Any], array: pa.Array) -> list[Any]:
    if isinstance(column.type, Vector):
        return [None if v is None else np.asarray(v, np.float32) for v in _lists(array)]
    values: list[Any] = array.to_pylist()
    if isinstance(column.type, JSON):
        return [None if value is None else json.loads(value) for value in values]
    return values


def _lists(array: pa.ListArray) -> list[Any]:
    """The lists of an array as NumPy arrays; faster by far than through Python's numbers."""
    flat, offsets = array.values.to_numpy(zero_copy_only=False), array.offsets.to_numpy()
    return [
        None if missing else flat[offsets[i] : offsets[i + 1]] for i, missing in enumerate(array.is_null().to_pylist())
    ]
