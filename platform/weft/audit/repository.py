"""Queries on the audit trail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit.chain import FIRST_HASH, Head
from weft.audit.models import AuditEntry, AuditHead
from weft.db.scope import unscoped

_CHAIN = "a chain is one tenant's or the platform's, and named"
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Found:
    """Which entries of a chain: behind a number, or in front of one; in a span of milliseconds."""

    chain: str
    below: int | None = None
    above: int | None = None
    types: Sequence[str] = ()
    actor_ids: Sequence[str] = ()
    target_ids: Sequence[str] = ()
    since_ms: int | None = None
    until_ms: int | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        found = [AuditEntry.chain == self.chain]
        bounds = (
            (self.below, AuditEntry.number.__lt__),
            (self.above, AuditEntry.number.__gt__),
            (self.since_ms, AuditEntry.recorded_at_ms.__ge__),
            (self.until_ms, AuditEntry.recorded_at_ms.__lt__),
        )
        found += [compare(bound) for bound, compare in bounds if bound is not None]
        choices = (
            (self.types, AuditEntry.type),
            (self.actor_ids, AuditEntry.actor_id),
            (self.target_ids, AuditEntry.target_id),
        )
        return found + [column.in_(chosen) for chosen, column in choices if chosen]


class AuditRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def hold_head(self, chain: str) -> Head:
        """The chain's end, which nobody else can add to before this transaction is over."""
        head = await self._find_head(chain)
        if head is None:
            try:
                async with self._session.begin_nested():
                    row = insert(AuditHead).values(chain=chain, number=0, hash=FIRST_HASH)
                    await self._session.execute(unscoped(row, _CHAIN))
            except IntegrityError:
                pass  # another transaction was first; the next line waits for it
            head = await self._find_head(chain)
        assert head is not None, "it was there, or was made"
        return head

    async def _find_head(self, chain: str) -> Head | None:
        statement = (
            select(AuditHead.chain, AuditHead.number, AuditHead.hash)
            .where(AuditHead.chain == chain)
            .with_for_update()
        )
        row = (await self._session.execute(unscoped(statement, _CHAIN))).one_or_none()
        return None if row is None else Head(*row)

    async def append(self, entry: AuditEntry) -> None:
        """Add the entry and move the chain's end to it."""
        self._session.add(entry)
        moved = (
            update(AuditHead)
            .where(AuditHead.chain == entry.chain)
            .values(number=entry.number, hash=entry.hash)
        )
        await self._session.execute(unscoped(moved, _CHAIN))
        await self._session.flush()

    async def find_number(self, chain: str, entry_id: str) -> int | None:
        statement = select(AuditEntry.number).where(
            AuditEntry.chain == chain, AuditEntry.id == entry_id
        )
        return await self._session.scalar(unscoped(statement, _CHAIN))

    async def find(self, wanted: Found, limit: int) -> list[AuditEntry]:
        """Newest first; oldest first in front of a number."""
        order = AuditEntry.number.desc() if wanted.above is None else AuditEntry.number.asc()
        statement = select(AuditEntry).where(*wanted.conditions()).order_by(order).limit(limit)
        return list((await self._session.scalars(unscoped(statement, _CHAIN))).all())

    async def list_heads(self) -> list[Head]:
        statement = select(AuditHead.chain, AuditHead.number, AuditHead.hash)
        rows = await self._session.execute(
            unscoped(statement.order_by(AuditHead.chain), "all chains are verified")
        )
        return [Head(*row) for row in rows]

    async def list_chains(self) -> list[str]:
        """Of the entries: a chain may have lost its head."""
        statement = select(AuditEntry.chain).distinct().order_by(AuditEntry.chain)
        rows = await self._session.scalars(unscoped(statement, "all chains are verified"))
        return list(rows)

    async def walk(self, chain: str) -> AsyncIterator[AuditEntry]:
        """The chain's entries from the first, a page at a time."""
        number = 0
        while True:
            statement = (
                select(AuditEntry)
                .where(AuditEntry.chain == chain, AuditEntry.number > number)
                .order_by(AuditEntry.number)
                .limit(_PAGE)
            )
            rows = (await self._session.scalars(unscoped(statement, _CHAIN))).all()
            for row in rows:
                yield row
            if len(rows) < _PAGE:
                return
            number = rows[-1].number
            self._session.expunge_all()
