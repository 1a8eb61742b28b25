"""Writes exports so that a consumer sees all of one or nothing.

An export has a number in its series before anything is written, the file is written before the
manifest, and the row of the export says that it is there once its manifest is. A process that was
killed leaves a number without a manifest: the next export takes the number, and whatever the file
became; or a manifest that no row knows: then the export is taken for what it is. One process at a
time works on a series.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path

from weft.billing.export_repository import ExportRepository
from weft.billing.files import FileFormat, WrittenFile, write_table
from weft.billing.focus.columns import Dataset, FocusVersion
from weft.billing.focus.cost_and_usage import create_cost_and_usage
from weft.billing.focus.invoices import (
    PeriodStatus,
    create_billing_periods,
    create_invoice_detail,
)
from weft.billing.manifest import MANIFEST_NAME, ExportLabel, create_manifest, create_schema
from weft.billing.models import ExportRow
from weft.billing.money import CURRENCY, PICO_PER_DOLLAR
from weft.billing.periods import Month
from weft.billing.statement import Statement
from weft.billing.statements import read_periods, read_statement
from weft.billing.tables import Table
from weft.db.database import Database
from weft.db.ids import create_id, now
from weft.db.leases import create_holder, run_alone
from weft.db.scope import TenantOwner
from weft.errors import ConflictError, InvalidRequestError
from weft.storage.objects import ObjectTarget
from weft.tenancy.models import Tenant

# the other datasets are new in 1.4
_SINCE_1_4 = ("invoice_detail", "billing_period")
_STEM = "part-00000"
_LEASE_S = 60.0


@dataclass(frozen=True, slots=True)
class WantedExport:
    """What is to be exported. InvalidRequestError for a dataset that the version does not have."""

    month: Month
    dataset: Dataset = "cost_and_usage"
    focus_version: FocusVersion = "1.4"
    format: FileFormat = "parquet"

    def __post_init__(self) -> None:
        if self.focus_version == "1.2" and self.dataset in _SINCE_1_4:
            raise InvalidRequestError(
                f"FOCUS 1.2 has no dataset {self.dataset}; it is new in 1.4.", param="dataset"
            )


class Exporter:
    """Exports to one target."""

    def __init__(self, database: Database, target: ObjectTarget) -> None:
        self._database = database
        self._target = target

    async def export(self, tenant: Tenant, wanted: WantedExport) -> tuple[ExportRow, bool]:
        """(the finished export, whether it is new): where nothing has changed it is the last one.

        ConflictError while another process exports the same; ExportError for what cannot be
        written; what the target raises.
        """
        label = _label(tenant, wanted, sequence=0)
        # a lease's name is short
        name = f"export:{hashlib.sha256(label.series.encode()).hexdigest()[:32]}"
        done = await run_alone(
            self._database,
            name,
            create_holder(),
            lambda: self._export(tenant, wanted),
            duration_s=_LEASE_S,
        )
        if done is None:
            raise ConflictError(
                "The same is being exported at this moment.", code="export_running", retry_after_s=5
            )
        return done

    async def _export(self, tenant: Tenant, wanted: WantedExport) -> tuple[ExportRow, bool]:
        finished, unfinished = await self._read_series(tenant, wanted)
        if unfinished is not None and await self._adopt(unfinished):
            finished, unfinished = await self._read_series(tenant, wanted)
        last = finished[-1] if finished else None
        sequence = 1 + (0 if last is None else last.sequence)
        label = _label(tenant, wanted, sequence)
        async with self._database.reading() as session:
            statement = await read_statement(session, tenant, wanted.month)
            periods = await read_periods(session, wanted.month)
        with tempfile.TemporaryDirectory(prefix="weft-export-") as folder:
            table = _table(statement, periods, wanted)
            metadata = _metadata(label, table)
            written = await asyncio.to_thread(
                write_table, table, Path(folder), _STEM, wanted.format, metadata
            )
            if last is not None and await self._is_same(last, wanted, written, statement):
                return last, False
            row = unfinished or await self._claim(tenant, wanted, label)
            manifest = create_manifest(
                label,
                table.columns,
                written,
                previous_sha256=None if last is None else last.manifest_sha256,
                watermark_at=statement.watermark_at,
                is_final=statement.is_final,
                generator=metadata["generator_version"],
            )
            path = Path(folder) / written.name
            await asyncio.to_thread(self._target.put_file, f"{label.folder}/{path.name}", path)
        await asyncio.to_thread(self._target.put_bytes, f"{label.folder}/{MANIFEST_NAME}", manifest)
        return await self._finish(row, manifest), True

    async def _read_series(
        self, tenant: Tenant, wanted: WantedExport
    ) -> tuple[list[ExportRow], ExportRow | None]:
        """Those that consumers see, and the one that was not finished."""
        series = _label(tenant, wanted, sequence=0).series
        async with self._database.reading() as session:
            rows = await ExportRepository(session).list_series(
                self._target.url, series, TenantOwner(tenant.id)
            )
        unfinished = [row for row in rows if row.manifest_sha256 is None]
        assert len(unfinished) <= 1, "one process at a time works on a series"
        return [row for row in rows if row not in unfinished], next(iter(unfinished), None)

    async def _adopt(self, row: ExportRow) -> bool:
        """Whether the export was whole, but for its row."""
        name = f"{row.series}/export={row.sequence:06d}/{MANIFEST_NAME}"
        manifest = await asyncio.to_thread(self._target.read, name)
        if manifest is None:
            return False
        await self._finish(row, manifest)
        return True

    async def _is_same(
        self, last: ExportRow, wanted: WantedExport, written: WrittenFile, statement: Statement
    ) -> bool:
        if (last.content_sha256, last.is_final, last.format) != (
            written.content_sha256,
            statement.is_final,
            wanted.format,
        ):
            return False
        name = f"{last.series}/export={last.sequence:06d}/{MANIFEST_NAME}"
        return await asyncio.to_thread(self._target.read, name) is not None

    async def _claim(self, tenant: Tenant, wanted: WantedExport, label: ExportLabel) -> ExportRow:
        row = ExportRow(
            id=create_id("exp"),
            tenant_id=tenant.id,
            target=self._target.url,
            series=label.series,
            sequence=label.sequence,
            month=str(wanted.month),
            dataset=wanted.dataset,
            focus_version=wanted.focus_version,
            format=wanted.format,
            created_at=now(),
        )
        async with self._database.writing() as session:
            ExportRepository(session).add(row)
        return row

    async def _finish(self, row: ExportRow, manifest: bytes) -> ExportRow:
        said = json.loads(manifest)
        billed = Decimal(said["sums"][CURRENCY].get("BilledCost", "0"))
        async with self._database.writing() as session:
            found = await ExportRepository(session).find(row.id)
            assert found is not None, "rows of exports stay"
            found.format = said["files"][0]["name"].partition(".")[2]
            found.is_final = said["is_final"]
            found.num_rows = said["files"][0]["num_rows"]
            found.billed_pico = int(billed * PICO_PER_DOLLAR)
            found.content_sha256 = said["content_sha256"]
            found.manifest_sha256 = hashlib.sha256(manifest).hexdigest()
        return found


def _label(tenant: Tenant, wanted: WantedExport, sequence: int) -> ExportLabel:
    return ExportLabel(
        wanted.dataset, wanted.focus_version, str(wanted.month), f"tenant={tenant.id}", sequence
    )


def _table(statement: Statement, periods: Sequence[PeriodStatus], wanted: WantedExport) -> Table:
    if wanted.dataset == "cost_and_usage":
        return create_cost_and_usage(statement, wanted.focus_version)
    if wanted.dataset == "invoice_detail":
        return create_invoice_detail(statement)
    return create_billing_periods(statement.issuer.name, periods)


def _metadata(label: ExportLabel, table: Table) -> dict[str, str]:
    return {
        "export_id": label.export_id,
        "focus_version": label.focus_version,
        "generator_version": f"weft {version('weft')}",
        "schema_id": str(create_schema(label, table.columns)["SchemaId"]),
    }
