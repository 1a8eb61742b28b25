"""Files are the same bytes for the same rows, and hold what the rows say."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from weft.billing.charges import Charge
from weft.billing.files import FORMATS, ExportError, FileFormat, write_table
from weft.billing.focus.columns import VERSIONS, FocusVersion
from weft.billing.focus.cost_and_usage import create_cost_and_usage
from weft.billing.focus.invoices import create_invoice_detail
from weft.billing.manifest import ExportLabel, create_manifest
from weft.billing.statement import Statement
from weft.billing.tables import Column, Table

CreateStatement = Callable[..., Statement]
GOLDEN = Path(__file__).parent / "golden"
LABEL = ExportLabel("cost_and_usage", "1.4", "2026-11", "tenant=tnt_a", 1)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_csv_file_is_the_golden_one(
    charges: list[Charge], create_statement: CreateStatement, version: FocusVersion, tmp_path: Path
) -> None:
    table = create_cost_and_usage(create_statement(charges), version)
    written = write_table(table, tmp_path, "part", "csv", {})
    golden = GOLDEN / f"cost-and-usage-{version}.csv"
    assert (tmp_path / written.name).read_bytes() == golden.read_bytes()


def test_the_golden_invoice_detail(
    charges: list[Charge], create_statement: CreateStatement, tmp_path: Path
) -> None:
    write_table(create_invoice_detail(create_statement(charges)), tmp_path, "part", "csv", {})
    assert (tmp_path / "part.csv").read_bytes() == (GOLDEN / "invoice-detail.csv").read_bytes()


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_same_rows_are_the_same_bytes(
    charges: list[Charge],
    create_statement: CreateStatement,
    file_format: FileFormat,
    tmp_path: Path,
) -> None:
    written = []
    for stem in ("a", "b"):
        table = create_cost_and_usage(create_statement(charges), "1.4")
        written.append(write_table(table, tmp_path, stem, file_format, {"export_id": "x"}))
    data = [(tmp_path / file.name).read_bytes() for file in written]
    assert data[0] == data[1]
    for file, content in zip(written, data, strict=True):
        assert file.sha256 == hashlib.sha256(content).hexdigest()
        assert (file.num_bytes, file.num_rows) == (len(content), len(charges) + 1)


def test_parquet_and_csv_hold_the_same(
    charges: list[Charge], create_statement: CreateStatement, tmp_path: Path
) -> None:
    for file_format in FORMATS:
        table = create_cost_and_usage(create_statement(charges), "1.4")
        write_table(table, tmp_path, "part", file_format, {"focus_version": "1.4"})
    read = pq.read_table(tmp_path / "part.parquet")
    assert read.schema.metadata[b"focus_version"] == b"1.4"
    assert str(read.schema.field("BilledCost").type) == "decimal128(38, 12)"
    assert str(read.schema.field("ChargePeriodStart").type) == "timestamp[us, tz=UTC]"
    assert not read.schema.field("BilledCost").nullable
    with (tmp_path / "part.csv").open(newline="") as file:
        for from_csv, from_parquet in zip(csv.DictReader(file), read.to_pylist(), strict=True):
            for name, cell in from_csv.items():
                value = from_parquet[name]
                if isinstance(value, Decimal):
                    assert Decimal(cell) == value
                elif value is None or isinstance(value, str):
                    assert cell == (value or "")
                else:
                    assert cell == value.strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_table_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    for file_format in FORMATS:
        table = Table((Column("BilledCost", "decimal"),), ())
        written = write_table(table, tmp_path, "none", file_format, {})
        assert (written.num_rows, written.sums) == (0, {"BilledCost": Decimal(0)})
    assert pq.read_table(tmp_path / "none.parquet").column_names == ["BilledCost"]


def test_more_rows_than_a_group_are_all_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.billing.files._ROWS_PER_GROUP", 3)
    table = Table((Column("x_Number", "decimal"),), [(Decimal(i),) for i in range(8)])
    written = write_table(table, tmp_path, "part", "parquet", {})
    assert written.sums == {"x_Number": Decimal(28)}
    assert pq.ParquetFile(tmp_path / "part.parquet").num_row_groups == 3


@pytest.mark.parametrize("name", ["=1+1", "+x", "-x", "@x", "\tx", "\rx"])
def test_a_text_that_a_spreadsheet_would_compute_is_refused(name: str, tmp_path: Path) -> None:
    table = Table((Column("SubAccountName"),), [(name,)])
    with pytest.raises(ExportError, match="SubAccountName"):
        write_table(table, tmp_path, "part", "csv", {})


def test_text_with_quotes_commas_and_line_ends_survives(tmp_path: Path) -> None:
    text = 'a "b", c\nd'
    write_table(Table((Column("Name"),), [(text,)]), tmp_path, "part", "csv", {})
    found = list(csv.reader(io.StringIO((tmp_path / "part.csv").read_text(), newline="")))
    assert found == [["Name"], [text]]


def test_a_manifest_lists_hashes_sums_and_the_schema(
    charges: list[Charge], create_statement: CreateStatement, tmp_path: Path
) -> None:
    statement = create_statement(charges)
    table = create_cost_and_usage(statement, "1.4")
    written = write_table(table, tmp_path, "part-00000", "csv", {})
    made = create_manifest(
        LABEL, table.columns, written, previous_sha256=None,
        watermark_at=statement.watermark_at, is_final=True, generator="weft 0.1.0",
    )  # fmt: skip
    found = json.loads(made)
    assert statement.invoice is not None
    payable = Decimal(statement.invoice.payable_pico) / 10**12
    assert Decimal(found["sums"]["USD"]["BilledCost"]) == payable
    assert found["files"][0]["sha256"] == written.sha256
    assert [c["ColumnName"] for c in found["focus"]["ColumnDefinition"]] == [
        column.name for column in table.columns
    ]
    assert found["is_final"] is True


def test_an_export_has_a_folder_of_its_own() -> None:
    assert LABEL.folder == (
        "focus/v1.4/cost_and_usage/billing_period=2026-11/tenant=tnt_a/export=000001"
    )
    assert LABEL.export_id != ExportLabel(*(LABEL.dataset, "1.2"), "2026-11", "all", 1).export_id
