"""What events have cost that count in a budget."""

from __future__ import annotations

from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from weft.db.scope import TenantOwner, scoped, unscoped
from weft.limits.models import Budget
from weft.limits.subjects import SubjectKind
from weft.usage.models import UsageEvent

_SUBJECTS: dict[SubjectKind, InstrumentedAttribute[str] | InstrumentedAttribute[str | None]] = {
    "tenant": UsageEvent.tenant_id,
    "project": UsageEvent.project_id,
    "key": UsageEvent.api_key_id,
    "adapter": UsageEvent.adapter_id,
    "base": UsageEvent.base_model,
}


class SpendingRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def sum_since(self, budget: Budget, *times_s: int) -> list[int]:
        """Picodollars of the subject's requests that began at each of the times or later."""
        event = UsageEvent
        sums = [
            func.coalesce(
                func.sum(case((event.started_at_ms >= time_s * 1000, event.amount_pico), else_=0)),
                0,
            )
            for time_s in times_s
        ]
        statement = select(*sums).where(
            # a request ends after its beginning, and of ends there is an index
            event.ended_at_ms >= min(times_s) * 1000,
            _SUBJECTS[budget.subject_kind] == budget.subject_id,
        )
        if budget.tenant_id is None:
            statement = unscoped(statement, "the budget of a base is all tenants'")
        else:
            statement = scoped(statement, TenantOwner(budget.tenant_id))
        return [int(value) for value in (await self._session.execute(statement)).one()]
