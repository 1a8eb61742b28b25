"""A tenant's statement of a month: what the exports are made of. Values only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from weft.billing.charges import Charge
from weft.billing.invoicing import Line
from weft.billing.periods import Month

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who sends the invoices and provides the service, as the operator has put it."""

    name: str = "Weft"
    service_name: str = "LoRA Inference"
    host_name: str | None = None
    payment_days: int = 30
    region_id: str | None = None
    region_name: str | None = None

    @property
    def payment_terms(self) -> str:
        return f"Net {self.payment_days}"


@dataclass(frozen=True, slots=True)
class IssuedInvoice:
    """What an invoice says about itself."""

    id: str
    issued_at: int
    due_at: int
    payable_pico: int
    lines: tuple[Line, ...]

    def line_id(self, number: int) -> str:
        return f"{self.id}-{number}"


@dataclass(frozen=True)
class Statement:
    """`invoice` is None while the month is open, or where nothing was used.

    `is_final`: the month is closed. `issuer` is as it was when the invoice was issued. `charges` is
    read once: each with the number of its line, or None before there is an invoice. `invoice_ids`
    are those of earlier months, by month. `watermark_at` is when what was known ended: the close of
    the month, or for an open one the newest event that is in it.
    """

    tenant_id: str
    tenant_name: str
    month: Month
    issuer: Issuer
    invoice: IssuedInvoice | None
    charges: Iterable[tuple[Charge, int | None]]
    watermark_at: int
    is_final: bool
    project_names: Mapping[str, str] = field(default_factory=dict)
    invoice_ids: Mapping[Month, str] = field(default_factory=dict)
