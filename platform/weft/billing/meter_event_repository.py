"""Queries on customers and on the meter events that they were sent."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from weft.billing.models import BillingCustomer, MeterEventRow
from weft.db.scope import Owner, scoped, unscoped

_SENDER = "usage of all tenants is sent"


class MeterEventRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, *rows: BillingCustomer | MeterEventRow) -> None:
        self._session.add_all(rows)

    async def flush(self) -> None:
        await self._session.flush()

    async def list_customers(self, sink: str) -> Sequence[BillingCustomer]:
        statement = select(BillingCustomer).where(BillingCustomer.sink == sink)
        statement = statement.order_by(BillingCustomer.tenant_id)
        return (await self._session.scalars(unscoped(statement, _SENDER))).all()

    async def find_owner_of(self, sink: str, customer_id: str) -> BillingCustomer | None:
        statement = select(BillingCustomer).where(
            BillingCustomer.sink == sink, BillingCustomer.customer_id == customer_id
        )
        return await self._session.scalar(unscoped(statement, "a customer is one tenant's"))

    async def delete_customer(self, sink: str, owner: Owner) -> None:
        statement = delete(BillingCustomer).where(BillingCustomer.sink == sink)
        await self._session.execute(scoped(statement, owner))

    async def list_since(self, owner: Owner, hour_at: int) -> Sequence[MeterEventRow]:
        statement = select(MeterEventRow).where(MeterEventRow.hour_at >= hour_at)
        return (await self._session.scalars(scoped(statement, owner))).all()

    async def list_tenants(self) -> Sequence[str]:
        """Those of whom Stripe was ever told."""
        statement = select(MeterEventRow.tenant_id).distinct().order_by(MeterEventRow.tenant_id)
        return (await self._session.scalars(unscoped(statement, _SENDER))).all()

    async def list_in_state(self, *states: str) -> Sequence[MeterEventRow]:
        statement = (
            select(MeterEventRow)
            .where(MeterEventRow.state.in_(states))
            .order_by(MeterEventRow.hour_at, MeterEventRow.identifier)
        )
        return (await self._session.scalars(unscoped(statement, _SENDER))).all()

    async def find(self, identifier: str) -> MeterEventRow | None:
        statement = select(MeterEventRow).where(MeterEventRow.identifier == identifier)
        return await self._session.scalar(unscoped(statement, _SENDER))
