"""Checks of `weft billing verify` on what is made of usage here: invoices and exports."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable

from sqlalchemy.ext.asyncio import AsyncSession

from weft.billing.closing import LOOKBACK_MONTHS
from weft.billing.export_repository import ExportRepository
from weft.billing.manifest import MANIFEST_NAME
from weft.billing.models import ExportRow, InvoiceRow
from weft.billing.money import round_to_cents
from weft.billing.periods import Month
from weft.billing.repository import BillingRepository
from weft.db.scope import TenantOwner
from weft.storage.objects import ObjectTarget
from weft.usage.verification import Check, CheckResult

NAME_INVOICES, NAME_PERIODS, NAME_EXPORTS = "invoices", "periods", "exports"


async def check_invoices(session: AsyncSession) -> CheckResult:
    """Charges add up to lines, lines to what is payable, and the ledger has the rounding."""
    repository = BillingRepository(session)
    invoices = await repository.list_all_invoices()
    differences: list[str] = []
    for invoice in invoices:
        differences += await _check_invoice(repository, invoice)
    return CheckResult.of(NAME_INVOICES, f"{len(invoices)} invoices", differences)


async def check_periods(session: AsyncSession) -> CheckResult:
    """What was used in closed months was invoiced; what was told later waits for the next one."""
    repository = BillingRepository(session)
    periods = [row for row in await repository.list_periods() if row.closed_at is not None]
    differences, num_waiting = [], 0
    for tenant in await repository.list_tenants():
        owner = TenantOwner(tenant.id)
        for age, period in enumerate(reversed(periods)):
            month = Month.parse(period.month)
            times = (month.start_at, month.end_at)
            _, *used = await repository.count_tokens(owner, *times)
            billed = await repository.count_billed(owner, *times)
            if (sum(used[:3]), used[3]) == billed:
                continue
            assert period.closed_at is not None
            is_late = await repository.has_events_recorded_after(owner, *times, period.closed_at)
            if is_late and age < LOOKBACK_MONTHS:
                num_waiting += 1
                continue
            differences.append(
                f"tenant {tenant.id} used {sum(used[:3])} tokens for {used[3]} pico in {month}, "
                f"invoiced are {billed[0]} for {billed[1]}"
            )
    note = f"{len(periods)} closed, corrections wait for {num_waiting} of tenants' months"
    return CheckResult.of(NAME_PERIODS, note, differences)


def create_export_check(target: ObjectTarget) -> Check:
    """A check of the exports at one place."""

    async def check_exports(session: AsyncSession) -> CheckResult:
        """Files and manifests are as they were written, and final ones are what is payable."""
        rows = await ExportRepository(session).list_finished(target.url)
        payable = {
            (row.tenant_id, row.month): row.payable_pico
            for row in await BillingRepository(session).list_all_invoices()
        }
        differences: list[str] = []
        previous: dict[str, str | None] = {}
        for row in rows:
            found = await asyncio.to_thread(_check_export, target, row, previous.get(row.series))
            differences += found
            previous[row.series] = row.manifest_sha256
            owed = payable.get((row.tenant_id, row.month), 0)
            has_costs = row.dataset in ("cost_and_usage", "invoice_detail")
            if row.is_final and has_costs and row.billed_pico != owed:
                differences.append(
                    f"export {row.id} bills {row.billed_pico} pico, the invoice {owed}"
                )
        return CheckResult.of(NAME_EXPORTS, f"{len(rows)} at {target.url}", differences)

    return check_exports


async def _check_invoice(repository: BillingRepository, invoice: InvoiceRow) -> list[str]:
    lines = await repository.list_lines(invoice)
    charged = await repository.sum_by_line(invoice)
    found = []
    for line in lines:
        if line.kind == "adjustment":
            posted = await repository.find_rounding(invoice)
            if posted != line.exact_pico or line.billed_pico != 0:
                found.append(f"rounding is {line.exact_pico} pico, the ledger has {posted}")
            continue
        if charged.pop(line.number, (0, 0)) != (line.num_tokens, line.exact_pico):
            found.append(f"line {line.number} is not what its charges come to")
        if line.billed_pico != round_to_cents(line.exact_pico):
            found.append(f"line {line.number} is rounded to {line.billed_pico} pico")
    found += [f"charges are on line {number}, which is not there" for number in charged]
    for total in (sum(line.exact_pico for line in lines), sum(line.billed_pico for line in lines)):
        if total != invoice.payable_pico:
            found.append(f"its lines come to {total} pico, payable are {invoice.payable_pico}")
    return [f"invoice {invoice.id}: {said}" for said in found]


def _check_export(target: ObjectTarget, row: ExportRow, previous: str | None) -> Iterable[str]:
    folder = f"{row.series}/export={row.sequence:06d}"
    manifest = target.read(f"{folder}/{MANIFEST_NAME}")
    if manifest is None:
        return [f"export {row.id} has no manifest"]
    if hashlib.sha256(manifest).hexdigest() != row.manifest_sha256:
        return [f"the manifest of export {row.id} was altered"]
    said = json.loads(manifest)
    found = []
    if said["previous_sha256"] != previous:
        found.append(f"export {row.id} does not follow the one before it")
    for file in said["files"]:
        data = target.read(f"{folder}/{file['name']}")
        if data is None or hashlib.sha256(data).hexdigest() != file["sha256"]:
            found.append(f"{file['name']} of export {row.id} is missing or was altered")
    return found
