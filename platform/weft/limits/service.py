"""What can be done with limits and budgets. Each function works in the caller's transaction, which
is one of `Database.writing`, and tells the audit trail who did it.

An owner of None is the platform, which owns the bases'. That a subject exists is the caller's to
check: some are of layers above.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import Target, record
from weft.db.ids import create_id, now
from weft.db.scope import Owner
from weft.errors import ConflictError, InvalidRequestError, NotFoundError
from weft.limits.budgets import period_start
from weft.limits.limit_repository import LimitAdminRepository
from weft.limits.models import Budget, Limit
from weft.limits.subjects import Period, Subject
from weft.tenancy.authority import Maker, audited

RATES = ("requests_per_minute", "tokens_per_minute", "max_running")
# of what is registered; only a tenant has them
QUOTAS = ("max_adapters", "max_versions", "max_stored_bytes")
MAX_LIMIT = 2**53
# what a row holds, with room for what runs beside it
MAX_BUDGET_PICO = 9_000_000 * 10**12

RowT = TypeVar("RowT", Limit, Budget)


async def set_limit(
    session: AsyncSession,
    owner: Owner | None,
    subject: Subject,
    values: Mapping[str, int | None],
    actor: Maker = None,
    *,
    model: str = "",
) -> Limit:
    """Make the subject's limits these, in place of those that it has; None: no limit of its own."""
    _check_limit(subject, values, model)
    repository = LimitAdminRepository(session, owner)
    row = await repository.find_limit(subject, model)
    event = "rate_limit.created" if row is None else "rate_limit.updated"
    if row is None:
        row = Limit(
            id=create_id("lim"),
            tenant_id=None if owner is None else owner.tenant_id,
            subject_kind=subject.kind,
            subject_id=subject.id,
            model=model,
            created_at=now(),
        )
    for name in (*RATES, *QUOTAS):
        setattr(row, name, values.get(name))
    row.updated_at = now()
    await repository.add(row)
    changes = {"subject": str(subject), "model": model or None, **values}
    await record(session, audited(actor), event, Target(row.id, row.tenant_id), changes)
    return row


def _check_limit(subject: Subject, values: Mapping[str, int | None], model: str) -> None:
    if all(value is None for value in values.values()):
        raise InvalidRequestError(
            f"A limit has at least one of {', '.join((*RATES, *QUOTAS))}; delete it to have none."
        )
    if model and subject.kind != "project":
        raise InvalidRequestError("Only a project has limits of one model.", param="model")
    for name in QUOTAS:
        if values.get(name) is not None and subject.kind != "tenant":
            raise InvalidRequestError(f"'{name}' is a limit of tenants only.", param=name)


async def get_row(
    session: AsyncSession, owner: Owner | None, table: type[RowT], row_id: str
) -> RowT:
    """NotFoundError for what does not exist and for another tenant's alike."""
    row = await LimitAdminRepository(session, owner).find(table, row_id)
    if row is None:
        what = "limit" if table is Limit else "budget"
        raise NotFoundError(f"No {what} '{row_id}' exists.")
    return row


async def delete_row(
    session: AsyncSession, owner: Owner | None, row: Limit | Budget, actor: Maker = None
) -> None:
    """What it bound is free from then on; of a budget, what was spent is not remembered."""
    await LimitAdminRepository(session, owner).delete(row)
    event = "rate_limit.deleted" if isinstance(row, Limit) else "budget.deleted"
    subject = f"{row.subject_kind} {row.subject_id}"
    target = Target(row.id, row.tenant_id)
    await record(session, audited(actor), event, target, {"subject": subject})


async def create_budget(
    session: AsyncSession,
    owner: Owner | None,
    subject: Subject,
    period: Period,
    limit_pico: int,
    actor: Maker = None,
) -> Budget:
    """It counts what begins from now on. ConflictError where the subject has one of this period."""
    _check_amount(limit_pico)
    repository = LimitAdminRepository(session, owner)
    if await repository.find_budget(subject, period) is not None:
        raise ConflictError(
            f"There is a budget of {subject} per {period} already.", code="budget_exists"
        )
    row = Budget(
        id=create_id("bdg"),
        tenant_id=None if owner is None else owner.tenant_id,
        subject_kind=subject.kind,
        subject_id=subject.id,
        period=period,
        limit_pico=limit_pico,
        spent_pico=0,
        held_pico=0,
        period_start=period_start(period, now()),
        created_at=now(),
        updated_at=now(),
    )
    await repository.add(row)
    changes = {"subject": str(subject), "period": period, "limit_pico": limit_pico}
    await record(session, audited(actor), "budget.created", Target(row.id, row.tenant_id), changes)
    return row


async def update_budget(
    session: AsyncSession, row: Budget, limit_pico: int, actor: Maker = None
) -> Budget:
    """Another limit; what was spent and is held stays."""
    _check_amount(limit_pico)
    row.limit_pico, row.updated_at = limit_pico, now()
    await session.flush()
    changes = {"limit_pico": limit_pico}
    await record(session, audited(actor), "budget.updated", Target(row.id, row.tenant_id), changes)
    return row


def _check_amount(limit_pico: int) -> None:
    if not 0 <= limit_pico <= MAX_BUDGET_PICO:
        raise InvalidRequestError(
            f"A budget is between 0 and {MAX_BUDGET_PICO // 10**12} USD.", param="limit_usd"
        )
