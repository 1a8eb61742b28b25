"""How a pending request ends: as an event that is paid for, or as if it had never been.

Both run in the transaction that took the pending row away, so that they happen once.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.scope import TenantOwner
from weft.limits import budgets
from weft.limits.budgets import BudgetHold
from weft.messages import Usage
from weft.usage import ledger, outbox
from weft.usage.models import EVENT_SCHEMA_VERSION, Outcome, UsageEvent, UsagePending
from weft.usage.price_repository import PriceRepository
from weft.usage.prices import FREE, Rates
from weft.usage.repository import UsageRepository

_ADMITTED = (
    "event_id",
    "tenant_id",
    "project_id",
    "api_key_id",
    "model",
    "base_model",
    "adapter_id",
    "adapter_version",
    "adapter_digest",
    "started_at_ms",
    "replica_id",
    "engine_id",
    "price_id",
)
# of prices, which never change
_MAX_RATES = 10_000


class Settler:
    """Ends requests and tells `sinks` of their events."""

    def __init__(self, sinks: Sequence[str] = ()) -> None:
        self._sinks = tuple(sinks)
        self._rates: dict[str, Rates] = {}

    async def settle(
        self,
        session: AsyncSession,
        pending: UsagePending,
        usage: Usage,
        finish_reason: str | None,
        outcome: Outcome,
        delay_ms: int = 0,
    ) -> None:
        """Write the event of a request that ended `delay_ms` ago, and all that follows from it.

        What is lost costs nothing.
        """
        if outcome == "lost":
            usage = Usage(0, 0)
        amount_pico = (await self._rates_of(session, pending.price_id)).amount_pico(usage)
        await self._pay(session, pending, amount_pico)
        # last, for it locks the replica's row until the commit
        replica_seq, recorded_at_ms = await UsageRepository(session).take_seq(pending.replica_id)
        event = UsageEvent(
            **{name: getattr(pending, name) for name in _ADMITTED},
            ended_at_ms=max(pending.started_at_ms, recorded_at_ms - delay_ms),
            recorded_at_ms=recorded_at_ms,
            prompt_tokens=usage.num_prompt_tokens,
            cached_prompt_tokens=usage.num_cached_tokens,
            completion_tokens=usage.num_completion_tokens,
            finish_reason=finish_reason,
            outcome=outcome,
            amount_pico=amount_pico,
            replica_seq=replica_seq,
            schema_version=EVENT_SCHEMA_VERSION,
        )
        UsageRepository(session).add(event, *outbox.messages_of(event, self._sinks))

    async def release(self, session: AsyncSession, pending: UsagePending) -> None:
        """Give back what was held for a request that the engine never had."""
        await self._pay(session, pending, 0)

    async def _pay(self, session: AsyncSession, pending: UsagePending, amount_pico: int) -> None:
        if pending.hold_pico or amount_pico:
            posting = ledger.settlement(
                pending.tenant_id, pending.event_id, pending.hold_pico, amount_pico
            )
            await ledger.post(session, posting)
        if pending.budget_holds:
            holds = [BudgetHold.from_json(value) for value in pending.budget_holds]
            await budgets.settle(session, TenantOwner(pending.tenant_id), holds, amount_pico)

    async def _rates_of(self, session: AsyncSession, price_id: str | None) -> Rates:
        if price_id is None:
            return FREE
        rates = self._rates.get(price_id)
        if rates is None:
            price = await PriceRepository(session).find(price_id)
            assert price is not None, f"price {price_id} was removed"
            if len(self._rates) >= _MAX_RATES:
                self._rates.clear()
            rates = self._rates[price_id] = Rates.of(price)
        return rates
