"""An export is whole before anybody sees it, and made once for what has not changed."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import pytest
from benchmarks.chaos import s3_server
from sqlalchemy import select
from tests.billing.books import AUGUST, SEPTEMBER, Books

from weft.audit import SYSTEM
from weft.billing.closing import close_month
from weft.billing.exporting import Exporter, WantedExport
from weft.billing.focus.columns import Dataset
from weft.billing.models import ExportRow, InvoiceRow
from weft.billing.money import to_dollars
from weft.db.scope import unscoped
from weft.errors import ConflictError, InvalidRequestError
from weft.storage.objects import FolderTarget, ObjectTarget, S3Target, create_target
from weft.storage.s3 import S3Location
from weft.tenancy.models import Tenant

WANTED = WantedExport(AUGUST, format="csv")


class KilledError(Exception):
    """Stands for the end of the process."""


async def tenant_of(books: Books, tenant_id: str) -> Tenant:
    async with books.database.reading() as session:
        statement = select(Tenant).where(Tenant.id == tenant_id)
        tenant = await session.scalar(unscoped(statement, "a test"))
    assert tenant is not None
    return tenant


@pytest.fixture
async def acme(sqlite_books: Books) -> Tenant:
    """With two charges in August."""
    tenant_id = await sqlite_books.add_tenant("acme")
    await sqlite_books.use(tenant_id, AUGUST.start_at, (1_000, 24, 58))
    await sqlite_books.use(tenant_id, AUGUST.end_at - 1, (7, 0, 0), adapter=None)
    return await tenant_of(sqlite_books, tenant_id)


@pytest.fixture
def target(tmp_path: Path) -> FolderTarget:
    return FolderTarget(tmp_path / "exports")


def read(target: ObjectTarget, row: ExportRow, name: str) -> bytes:
    data = target.read(f"{row.series}/export={row.sequence:06d}/{name}")
    assert data is not None
    return data


def check_export(target: ObjectTarget, row: ExportRow) -> dict[str, Any]:
    """The manifest, after everything it says was looked at."""
    manifest = read(target, row, "manifest.json")
    assert hashlib.sha256(manifest).hexdigest() == row.manifest_sha256
    found: dict[str, Any] = json.loads(manifest)
    (file,) = found["files"]
    data = read(target, row, file["name"])
    assert hashlib.sha256(data).hexdigest() == file["sha256"]
    assert len(data) == file["num_bytes"]
    if file["name"].endswith(".csv"):
        rows = list(csv.DictReader(data.decode().splitlines()))
        assert len(rows) == file["num_rows"] == row.num_rows
        if "BilledCost" in found["sums"].get("USD", {}):
            billed = sum(Decimal(each["BilledCost"]) for each in rows)
            assert billed == Decimal(found["sums"]["USD"]["BilledCost"])
            assert billed == to_dollars(row.billed_pico or 0)
    return found


async def test_a_closed_month_is_exported_once(
    sqlite_books: Books, acme: Tenant, target: FolderTarget
) -> None:
    await close_month(sqlite_books.database, AUGUST, SYSTEM)
    exporter = Exporter(sqlite_books.database, target)
    row, is_new = await exporter.export(acme, WANTED)
    assert (is_new, row.sequence, row.is_final) == (True, 1, True)
    manifest = check_export(target, row)
    async with sqlite_books.database.reading() as session:
        invoice = await session.scalar(unscoped(select(InvoiceRow), "a test"))
    assert invoice is not None
    payable = to_dollars(invoice.payable_pico)
    assert Decimal(manifest["sums"]["USD"]["BilledCost"]) == payable
    again, is_new = await exporter.export(acme, WANTED)
    assert (is_new, again.id) == (False, row.id)


async def test_two_places_get_the_same_bytes(
    sqlite_books: Books, acme: Tenant, tmp_path: Path
) -> None:
    await close_month(sqlite_books.database, AUGUST, SYSTEM)
    found = []
    for name in ("a", "b"):
        target = FolderTarget(tmp_path / name)
        for file_format in ("csv", "parquet"):
            wanted = WantedExport(AUGUST, format=file_format)
            await Exporter(sqlite_books.database, target).export(acme, wanted)
        found.append({
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in (tmp_path / name).rglob("*") if path.is_file()
        })  # fmt: skip
    assert found[0] == found[1]
    assert len(found[0]) == 4


async def test_what_has_changed_is_a_new_export_that_names_the_one_before(
    sqlite_books: Books, acme: Tenant, target: FolderTarget
) -> None:
    exporter = Exporter(sqlite_books.database, target)
    provisional, _ = await exporter.export(acme, WANTED)
    assert check_export(target, provisional)["is_final"] is False
    await close_month(sqlite_books.database, AUGUST, SYSTEM)
    final, is_new = await exporter.export(acme, WANTED)
    manifest = check_export(target, final)
    assert (is_new, final.sequence, manifest["is_final"]) == (True, 2, True)
    assert manifest["previous_sha256"] == provisional.manifest_sha256
    check_export(target, provisional)  # consumers may be reading it


@pytest.mark.parametrize("dataset", ["cost_and_usage", "invoice_detail", "billing_period"])
async def test_every_dataset_is_exported(
    sqlite_books: Books, acme: Tenant, target: FolderTarget, dataset: Dataset
) -> None:
    await close_month(sqlite_books.database, AUGUST, SYSTEM)
    exporter = Exporter(sqlite_books.database, target)
    row, _ = await exporter.export(acme, WantedExport(AUGUST, dataset, format="csv"))
    assert check_export(target, row)["dataset"] == dataset
    assert row.num_rows


def test_the_older_version_has_one_dataset() -> None:
    with pytest.raises(InvalidRequestError, match=r"new in 1\.4"):
        WantedExport(AUGUST, "invoice_detail", "1.2")


class Failing(FolderTarget):
    """Fails when it is asked to write a manifest: before it does, or after."""

    def __init__(self, root: Path, *, is_after: bool) -> None:
        super().__init__(root)
        self._is_after = is_after

    def put_bytes(self, name: str, data: bytes) -> None:
        if self._is_after:
            super().put_bytes(name, data)
        raise KilledError


@pytest.mark.parametrize("is_after", [False, True])
async def test_an_export_that_was_broken_off_is_taken_up(
    sqlite_books: Books, acme: Tenant, target: FolderTarget, is_after: bool
) -> None:
    failing = Failing(Path(target.url), is_after=is_after)
    with pytest.raises(KilledError):
        await Exporter(sqlite_books.database, failing).export(acme, WANTED)
    await sqlite_books.use(acme.id, AUGUST.start_at + 7200, (5, 0, 0))
    row, is_new = await Exporter(sqlite_books.database, target).export(acme, WANTED)
    # what a consumer may have seen is not written over
    assert (is_new, row.sequence) == (True, 2 if is_after else 1)
    async with sqlite_books.database.reading() as session:
        rows = (await session.scalars(unscoped(select(ExportRow), "a test"))).all()
    assert len(rows) == row.sequence
    manifests = [check_export(target, each) for each in sorted(rows, key=lambda r: r.sequence)]
    assert manifests[-1]["previous_sha256"] == (rows[0].manifest_sha256 if is_after else None)


async def test_one_process_at_a_time_exports_a_series(
    sqlite_books: Books, acme: Tenant, target: FolderTarget
) -> None:
    exporter = Exporter(sqlite_books.database, target)
    done = await asyncio.gather(
        *(exporter.export(acme, WANTED) for _ in range(4)), return_exceptions=True
    )
    refused = [each for each in done if isinstance(each, ConflictError)]
    made = [each for each in done if isinstance(each, tuple)]
    assert len(refused) + len(made) == 4
    assert sum(is_new for _, is_new in made) == 1


async def test_an_empty_month_is_exported_as_such(
    sqlite_books: Books, acme: Tenant, target: FolderTarget
) -> None:
    exporter = Exporter(sqlite_books.database, target)
    row, _ = await exporter.export(acme, WantedExport(SEPTEMBER, format="parquet"))
    assert (row.num_rows, check_export(target, row)["is_final"]) == (0, False)


# ---- targets ----


@pytest.fixture(scope="module")
def s3(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        url = stack.enter_context(s3_server())
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
        client.create_bucket(Bucket="exports")
        yield url


@pytest.fixture(params=["folder", "s3"])
def any_target(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectTarget:
    if request.param == "folder":
        return FolderTarget(tmp_path / "exports")
    place = S3Location("exports", f"{abs(hash(request.node.nodeid))}/")
    return S3Target(place, request.getfixturevalue("s3"))


def test_a_target_keeps_whole_objects(any_target: ObjectTarget, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1" * 100_000)
    assert any_target.read("a/b=1/file") is None
    any_target.put_file("a/b=1/file", tmp_path / "file")
    any_target.put_bytes("a/b=1/other", b"first")
    any_target.put_bytes("a/b=1/other", b"second")
    assert any_target.read("a/b=1/file") == b"1" * 100_000
    assert any_target.read("a/b=1/other") == b"second"


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", ".", "a//b", "a/"])
def test_a_name_that_leads_elsewhere_is_refused(any_target: ObjectTarget, name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        any_target.put_bytes(name, b"")


async def test_exports_go_to_a_bucket_as_well(sqlite_books: Books, acme: Tenant, s3: str) -> None:
    target = create_target("s3://exports/acme", s3)
    row, is_new = await Exporter(sqlite_books.database, target).export(acme, WANTED)
    assert (is_new, row.target) == (True, "s3://exports/acme")
    check_export(target, row)


@pytest.mark.parametrize("url", ["s3://", "http://x/y", "s3:///x"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="s3://"):
        create_target(url)
