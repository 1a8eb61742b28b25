"""What operators do with billing, but for closing months: the issuer, and exports."""

from __future__ import annotations

import dataclasses

from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import Actor, Target, record
from weft.billing.exporting import Exporter, WantedExport
from weft.billing.files import ExportError
from weft.billing.models import ExportRow, IssuerProfile
from weft.billing.periods import Month
from weft.billing.repository import BillingRepository
from weft.billing.statement import Issuer
from weft.db.database import Database
from weft.db.ids import now
from weft.errors import ConflictError, InvalidRequestError, OverloadedError
from weft.storage.objects import StoreUnavailableError
from weft.tenancy.service import get_tenant

_PROFILE_ID = "issuer"


def parse_month(name: str) -> Month:
    """InvalidRequestError for a name that is no month."""
    try:
        return Month.parse(name)
    except ValueError as error:
        raise InvalidRequestError(f"{error}.", param="billing_period") from error


async def set_issuer(session: AsyncSession, issuer: Issuer, actor: Actor) -> None:
    """For the invoices from now on."""
    repository = BillingRepository(session)
    row = await repository.find_issuer()
    if row is None:
        row = IssuerProfile(id=_PROFILE_ID, profile={}, updated_at=0)
        repository.add(row)
    row.profile, row.updated_at = dataclasses.asdict(issuer), now()
    await repository.flush()
    changes = dataclasses.asdict(issuer)
    await record(session, actor, "billing_issuer.updated", Target(_PROFILE_ID), changes)


async def create_export(
    database: Database, exporter: Exporter, tenant: str, wanted: WantedExport, actor: Actor
) -> tuple[ExportRow, bool]:
    """(the export, whether it is new). NotFoundError, ConflictError, OverloadedError."""
    async with database.reading() as session:
        found = await get_tenant(session, tenant)
    try:
        row, is_new = await exporter.export(found, wanted)
    except ExportError as error:
        raise ConflictError(f"The export cannot be written: {error}.") from error
    except StoreUnavailableError as error:
        raise OverloadedError(f"The place of exports is away: {error}.", retry_after_s=5) from error
    except OSError as error:
        raise ConflictError(f"The place of exports refuses: {error}.") from error
    if is_new:
        async with database.writing() as session:
            target = Target(row.id, found.id)
            changes = {"series": row.series, "sequence": row.sequence, "target": row.target}
            await record(session, actor, "billing_export.created", target, changes)
    return row, is_new
