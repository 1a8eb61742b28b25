"""The double-entry ledger: every transaction moves money between accounts and adds up to 0.

Amounts are picodollars; a debit is positive. The same transaction cannot be posted twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weft.db.transactions import Transaction
from weft.usage import ledger_repository
from weft.usage.money_models import LedgerKind

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


async def post(tx: Transaction, postings: Sequence[Posting]) -> None:
    """Write them in the caller's transaction; one without a movement is none.

    UnbalancedError, and IntegrityError for one that is there.
    """
    rows, entries = [], []
    for posting in postings:
        if sum(posting.entries.values()) != 0:
            raise UnbalancedError(f"{posting.id} adds up to {sum(posting.entries.values())}")
        moved = [
            {
                "tx_id": posting.id,
                "account": account,
                "amount_pico": amount,
                "tenant_id": posting.tenant_id,
            }
            for account, amount in posting.entries.items()
            if amount
        ]
        if moved:
            entries += moved
            rows.append(
                {
                    "id": posting.id,
                    "kind": posting.kind,
                    "tenant_id": posting.tenant_id,
                    "event_id": posting.event_id,
                }
            )
    await ledger_repository.add(tx, rows, entries)
