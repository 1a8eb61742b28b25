"""A database with tenants, prices and events as metering leaves them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import func, select, update

from weft.billing.periods import Month
from weft.db.database import Database
from weft.db.scope import unscoped
from weft.tenancy import service
from weft.tenancy.models import Project
from weft.usage.models import Replica, UsageEvent
from weft.usage.money_models import LedgerEntry, Price, PriceBook

AUGUST, SEPTEMBER, OCTOBER = Month(2026, 8), Month(2026, 9), Month(2026, 10)
INPUT_RATE, CACHED_RATE, OUTPUT_RATE = 2_500_003, 250_001, 10_000_007


@dataclass
class Books:
    """Adds what the tests bill. Numbers of events go up by themselves."""

    database: Database
    projects: dict[str, str] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def open(self) -> None:
        async with self.database.writing() as session:
            session.add(
                Replica(
                    id="replica_1", kind="server", started_at_ms=0, heartbeat_at_ms=0,
                    closed_at_ms=None, last_seq=0, rolled_up_seq=0, checkpoint_at_ms=None,
                    prompt_tokens=0, completion_tokens=0,
                )
            )  # fmt: skip
            session.add(PriceBook(id="book_1", name="first", effective_from=0, created_at=0))
            await session.flush()
            session.add(self._price("price_1", None, INPUT_RATE, CACHED_RATE, OUTPUT_RATE))

    def _price(self, price_id: str, tenant_id: str | None, *rates: int) -> Price:
        return Price(
            id=price_id, price_book_id="book_1", base_model="tiny", tenant_id=tenant_id,
            adapter_id=None, input_rate=rates[0], cached_input_rate=rates[1], output_rate=rates[2],
        )  # fmt: skip

    async def add_tenant(self, name: str) -> str:
        async with self.database.writing() as session:
            tenant = await service.create_tenant(session, name)
            statement = select(Project.id).where(Project.tenant_id == tenant.id)
            project_id = await session.scalar(unscoped(statement, "a test"))
        assert project_id is not None
        self.projects[tenant.id] = project_id
        return tenant.id

    async def add_price(self, price_id: str, tenant_id: str, *rates: int) -> None:
        async with self.database.writing() as session:
            session.add(self._price(price_id, tenant_id, *rates))

    async def use(
        self, tenant_id: str, at: int, tokens: Sequence[int], *, price: str | None = "price_1",
        adapter: str | None = "adp_1", key: str = "key1", rates: Sequence[int] = (),
    ) -> str:  # fmt: skip
        """One event that ended at `at`; `tokens` are prompt, of them cached, completion."""
        number = next(self._numbers)
        prompt, cached, completion = tokens
        found = rates or (INPUT_RATE, CACHED_RATE, OUTPUT_RATE)
        amount = (prompt - cached) * found[0] + cached * found[1] + completion * found[2]
        async with self.database.writing() as session:
            numbered = update(Replica).values(last_seq=number)
            await session.execute(unscoped(numbered, "a test"))
            session.add(
                UsageEvent(
                    event_id=f"req_{number}", tenant_id=tenant_id,
                    project_id=self.projects[tenant_id], api_key_id=key,
                    model="tiny" if adapter is None else "bot@v3", adapter_id=adapter,
                    adapter_version=None if adapter is None else 3,
                    adapter_digest=None if adapter is None else "sha256:abc", base_model="tiny",
                    started_at_ms=at * 1000, ended_at_ms=at * 1000 + 1, replica_id="replica_1",
                    price_id=price, recorded_at_ms=at * 1000 + 2, prompt_tokens=prompt,
                    cached_prompt_tokens=cached, completion_tokens=completion,
                    finish_reason="stop", outcome="ok", replica_seq=number, schema_version=2,
                    amount_pico=0 if price is None else amount,
                )
            )  # fmt: skip
        return f"req_{number}"

    async def balance(self, account: str) -> int:
        """What the ledger's entries on the account come to."""
        statement = select(func.coalesce(func.sum(LedgerEntry.amount_pico), 0)).where(
            LedgerEntry.account == account
        )
        async with self.database.reading() as session:
            return int(await session.scalar(unscoped(statement, "a test")) or 0)
