"""Writes the ledger's rows."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, insert

from weft.db.dialect import database_now_ms
from weft.db.prepared import Prepared, Values
from weft.db.transactions import Transaction
from weft.usage.money_models import LedgerEntry, LedgerTx

_ADD_TX = Prepared(
    insert(LedgerTx).values(
        id=bindparam("id"),
        kind=bindparam("kind"),
        tenant_id=bindparam("tenant_id"),
        event_id=bindparam("event_id"),
        created_at_ms=database_now_ms(),
    )
)
_ADD_ENTRY = Prepared(insert(LedgerEntry))


async def add(tx: Transaction, postings: Sequence[Values], entries: Sequence[Values]) -> None:
    """Rows of both tables; IntegrityError, at the latest at the commit, for what is there."""
    await tx.run(_ADD_TX, postings)
    await tx.run(_ADD_ENTRY, entries)
