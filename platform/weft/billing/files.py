"""Tables as CSV or Parquet files, the same bytes for the same rows.

CSV is RFC 4180 in UTF-8, with "\\n" and a header; nothing stands for null. Parquet has decimals
with 12 digits, times in microseconds of UTC, JSON as text, zstd.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from weft.billing.money import decimal_text
from weft.billing.tables import Cell, Column, Table, utc_text

if TYPE_CHECKING:
    import pyarrow

FileFormat: TypeAlias = Literal["csv", "parquet"]
FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
DECIMAL_PRECISION, DECIMAL_SCALE = 38, 12
# what spreadsheets take for the beginning of a formula
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_ROWS_PER_GROUP = 50_000
_EXACT = Context(prec=DECIMAL_PRECISION)


class ExportError(Exception):
    """The file cannot be written; the message says why."""


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file as a manifest lists it. `content_sha256` is of its rows, whatever its format."""

    name: str
    num_bytes: int
    sha256: str
    content_sha256: str
    num_rows: int
    sums: Mapping[str, Decimal]


def write_table(
    table: Table, folder: Path, stem: str, file_format: FileFormat, metadata: Mapping[str, str]
) -> WrittenFile:
    """Write `<stem>.<format>` into the folder; `metadata` goes into the file where it can.

    ExportError for a text that a spreadsheet would take for a formula.
    """
    path = folder / f"{stem}.{file_format}"
    counter = _Counter(table)
    if file_format == "csv":
        _write_csv(table.columns, counter.rows(), path)
    else:
        _write_parquet(table.columns, counter.rows(), path, metadata)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return WrittenFile(
        path.name,
        path.stat().st_size,
        sha256,
        counter.content_sha256,
        counter.num_rows,
        counter.sums,
    )


class _Counter:
    """Passes a table's rows on and adds up what comes by."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._decimals = [i for i, c in enumerate(table.columns) if c.type == "decimal"]
        self._texts = [i for i, c in enumerate(table.columns) if c.type == "string"]
        self._totals = [Decimal(0)] * len(table.columns)
        self._content = hashlib.sha256(repr(table.columns).encode())
        self.num_rows = 0

    @property
    def content_sha256(self) -> str:
        return self._content.hexdigest()

    @property
    def sums(self) -> dict[str, Decimal]:
        return {self._table.columns[i].name: self._totals[i] for i in self._decimals}

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        for row in self._table.rows:
            for i in self._decimals:
                value = row[i]
                if isinstance(value, Decimal):
                    self._totals[i] = _EXACT.add(self._totals[i], value)
            for i in self._texts:
                text = row[i]
                if isinstance(text, str) and text.startswith(_FORMULA_STARTS):
                    raise ExportError(
                        f"{self._table.columns[i].name} is {text[:60]!r}, which a spreadsheet "
                        "takes for a formula; rename it"
                    )
            self._content.update(repr(row).encode())
            self.num_rows += 1
            yield row


def _write_csv(columns: tuple[Column, ...], rows: Iterable[tuple[Cell, ...]], path: Path) -> None:
    as_text = [_TO_TEXT[column.type] for column in columns]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([column.name for column in columns])
        for row in rows:
            writer.writerow(
                [
                    "" if cell is None else text(cell)
                    for text, cell in zip(as_text, row, strict=True)
                ]
            )


_TO_TEXT: Mapping[str, Callable[[Any], str]] = {
    "string": str,
    "json": str,
    "decimal": decimal_text,
    "datetime": utc_text,
}


def _write_parquet(
    columns: tuple[Column, ...],
    rows: Iterable[tuple[Cell, ...]],
    path: Path,
    metadata: Mapping[str, str],
) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ExportError("Parquet needs pyarrow: pip install 'weft[billing]'") from error
    schema = _arrow_schema(columns, metadata)
    dictionaries: list[str] = [column.name for column in columns if column.is_id]
    remaining = iter(rows)
    with pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=dictionaries, version="2.6"
    ) as writer:
        # a file without rows has no groups, but a schema
        while group := list(islice(remaining, _ROWS_PER_GROUP)):
            arrays = [
                pa.array(_arrow_cells(column, cells), field.type)
                for column, field, cells in zip(
                    columns, schema, zip(*group, strict=True), strict=True
                )
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _arrow_cells(column: Column, cells: Iterable[Cell]) -> list[Cell]:
    if column.type == "datetime":
        return [None if cell is None else int(cell) * 1_000_000 for cell in cells]
    return list(cells)


def _arrow_schema(columns: tuple[Column, ...], metadata: Mapping[str, str]) -> pyarrow.Schema:
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "json": pa.string(),
        "decimal": pa.decimal128(DECIMAL_PRECISION, DECIMAL_SCALE),
        "datetime": pa.timestamp("us", "UTC"),
    }
    fields = [pa.field(c.name, types[c.type], nullable=c.is_nullable) for c in columns]
    return pa.schema(fields, metadata=dict(metadata))
