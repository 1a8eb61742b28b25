"""The double-entry ledger: every transaction moves money between accounts and adds up to 0.

Amounts are picodollars; a debit is positive. Posting the same transaction again changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import CursorResult
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.dialect import database_now_ms, insert_into
from weft.usage.money_models import LedgerEntry, LedgerKind, LedgerTx

# what running requests may cost at most; against `held_account`
HOLDS = "holds"
REVENUE_TOKENS = "revenue:tokens"
REVENUE_ROUNDING = "revenue:rounding"


class UnbalancedError(Exception):
    """A transaction's entries do not add up to 0."""


def held_account(tenant_id: str) -> str:
    return f"tenant:{tenant_id}:held"


def receivable_account(tenant_id: str) -> str:
    return f"tenant:{tenant_id}:receivable"


def credits_account(tenant_id: str) -> str:
    return f"tenant:{tenant_id}:credits"


@dataclass(frozen=True, slots=True)
class Posting:
    """One transaction: what it adds to each account. Its id follows from what it records."""

    id: str
    kind: LedgerKind
    tenant_id: str
    entries: Mapping[str, int]
    event_id: str | None = None


def hold_id(event_id: str) -> str:
    return f"{event_id}:hold"


def settlement_id(event_id: str) -> str:
    return f"{event_id}:settle"


def hold(tenant_id: str, event_id: str, amount_pico: int) -> Posting:
    """What a request may cost, kept until it is settled."""
    entries = {held_account(tenant_id): amount_pico, HOLDS: -amount_pico}
    return Posting(hold_id(event_id), "hold", tenant_id, entries, event_id)


def settlement(tenant_id: str, event_id: str, hold_pico: int, amount_pico: int) -> Posting:
    """What a request cost, and its hold undone."""
    entries = {
        held_account(tenant_id): -hold_pico,
        HOLDS: hold_pico,
        receivable_account(tenant_id): amount_pico,
        REVENUE_TOKENS: -amount_pico,
    }
    return Posting(settlement_id(event_id), "settle", tenant_id, entries, event_id)


async def post(session: AsyncSession, posting: Posting) -> bool:
    """Write it in the caller's transaction; False if it was there. Without a movement, nothing."""
    if sum(posting.entries.values()) != 0:
        raise UnbalancedError(f"{posting.id} adds up to {sum(posting.entries.values())}")
    entries = {account: amount for account, amount in posting.entries.items() if amount}
    if not entries:
        return False
    statement = insert_into(session, LedgerTx).values(
        id=posting.id,
        kind=posting.kind,
        tenant_id=posting.tenant_id,
        event_id=posting.event_id,
        created_at_ms=database_now_ms(),
    )
    inserted = await session.execute(statement.on_conflict_do_nothing())
    if not cast("CursorResult[Any]", inserted).rowcount:
        return False
    rows = [
        {
            "tx_id": posting.id,
            "account": account,
            "amount_pico": amount,
            "tenant_id": posting.tenant_id,
        }
        for account, amount in entries.items()
    ]
    # rows as parameters: with rows in it, a statement would be compiled each time
    await session.execute(insert_into(session, LedgerEntry), rows)
    return True
