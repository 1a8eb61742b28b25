"""Tables of money: prices that never change once they are published, and the double-entry ledger.

Amounts are picodollars; rates are micro-dollars per million tokens, which is picodollars a token.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from weft.db.base import Base, PlatformOwned, TenantOwned

# hold: what a request may cost, at its admission; settle: what it cost, and its hold undone
LedgerKind = Literal["hold", "settle", "adjustment", "rounding", "payment", "credit"]


class PriceBook(Base, PlatformOwned):
    """Prices that were published together and hold from `effective_from` (Unix s) on.

    The operator's, for all tenants.
    """

    __tablename__ = "price_books"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    effective_from: Mapped[int] = mapped_column(index=True)
    created_at: Mapped[int]


class Price(Base, PlatformOwned):
    """What the tokens of a base cost: for one adapter of a tenant, for the tenant, or for all.

    The operator's. Immutable. The narrowest that has begun holds, of those the one that began last.
    """

    __tablename__ = "prices"
    __table_args__ = (
        Index("ix_prices_base_model_tenant_id_adapter_id", "base_model", "tenant_id", "adapter_id"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    price_book_id: Mapped[str] = mapped_column(String(64), ForeignKey("price_books.id"), index=True)
    base_model: Mapped[str] = mapped_column(String(255))
    tenant_id: Mapped[str | None] = mapped_column(String(64), ForeignKey("tenants.id"))
    adapter_id: Mapped[str | None] = mapped_column(String(64))
    input_rate: Mapped[int]
    cached_input_rate: Mapped[int]
    output_rate: Mapped[int]


class LedgerTx(Base, TenantOwned):
    """A movement of money on a tenant's behalf. Append-only; its entries add up to 0.

    `id` follows from what it records, so that recording it twice is one row.
    """

    __tablename__ = "ledger_tx"
    __table_args__ = (Index("ix_ledger_tx_event_id", "event_id"),)

    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    event_id: Mapped[str | None] = mapped_column(String(80))
    created_at_ms: Mapped[int]


class LedgerEntry(Base, TenantOwned):
    """What one transaction adds to one account.

    Accounts: `tenant:<id>:held` against `holds`, while requests run; `tenant:<id>:receivable`
    and `tenant:<id>:credits` against `revenue:tokens` and `revenue:rounding`.
    """

    __tablename__ = "ledger_entries"
    __table_args__ = (Index("ix_ledger_entries_account", "account"),)

    tx_id: Mapped[str] = mapped_column(String(100), ForeignKey("ledger_tx.id"), primary_key=True)
    account: Mapped[str] = mapped_column(String(100), primary_key=True)
    amount_pico: Mapped[int]
