"""How pending requests end: as events that are paid for, or as if they had never been.

Both run in the transaction that took the pending rows away, so that they happen once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weft.db.prepared import Values
from weft.db.scope import TenantOwner
from weft.db.transactions import Transaction
from weft.limits import budgets
from weft.limits.budgets import BudgetHold
from weft.messages import Usage
from weft.usage import ledger, outbox, price_repository, repository
from weft.usage.models import EVENT_SCHEMA_VERSION, Outcome
from weft.usage.prices import FREE, Rates
from weft.usage.repository import Pending

# of prices, which never change
_MAX_RATES = 10_000


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended, `delay_ms` ago. What is lost costs nothing."""

    pending: Pending
    usage: Usage
    finish_reason: str | None
    outcome: Outcome
    delay_ms: int = 0

    @classmethod
    def lost(cls, pending: Pending) -> Ending:
        return cls(pending, Usage(0, 0), None, "lost")


class Settler:
    """Ends requests and tells `sinks` of their events."""

    def __init__(self, sinks: Sequence[str] = ()) -> None:
        self._sinks = tuple(sinks)
        self._rates: dict[str, Rates] = {}

    async def settle(self, tx: Transaction, endings: Sequence[Ending]) -> None:
        """Write the events of these requests, and all that follows from them."""
        if not endings:
            return
        rates = await self._rates_of(tx, {ending.pending.price_id for ending in endings})
        amounts = [_amount_pico(ending, rates) for ending in endings]
        await _pay(tx, [ending.pending for ending in endings], amounts)
        # last, for it locks the replicas' rows until the commit
        num_events = Counter(ending.pending.replica_id for ending in endings)
        taken = await repository.take_seqs(tx, num_events)
        seqs = {replica_id: iter(numbers) for replica_id, (numbers, _) in taken.items()}
        events, messages = [], []
        for ending, amount_pico in zip(endings, amounts, strict=True):
            replica_id = ending.pending.replica_id
            event = _event(ending, amount_pico, next(seqs[replica_id]), taken[replica_id][1])
            events.append(event)
            messages += outbox.messages_of(event, self._sinks)
        await repository.add_events(tx, events, messages)

    async def release(self, tx: Transaction, taken: Sequence[Pending]) -> None:
        """Give back what was held for requests that the engine never had."""
        await _pay(tx, taken, [0] * len(taken))

    def note_rates(self, price_id: str, rates: Rates) -> None:
        """What the price says, which will soon be asked for."""
        if len(self._rates) >= _MAX_RATES:
            self._rates.clear()
        self._rates[price_id] = rates

    async def _rates_of(
        self, tx: Transaction, price_ids: set[str | None]
    ) -> Mapping[str | None, Rates]:
        unknown = [id_ for id_ in price_ids if id_ is not None and id_ not in self._rates]
        if unknown:
            for id_, *rates in await price_repository.find_all(tx, unknown):
                self.note_rates(id_, Rates(*rates))
        return {id_: FREE if id_ is None else self._rates[id_] for id_ in price_ids}


def _amount_pico(ending: Ending, rates: Mapping[str | None, Rates]) -> int:
    if ending.outcome == "lost":
        return 0
    return rates[ending.pending.price_id].amount_pico(ending.usage)


async def _pay(tx: Transaction, taken: Sequence[Pending], amounts: Sequence[int]) -> None:
    paid = list(zip(taken, amounts, strict=True))
    await ledger.post(
        tx,
        [
            ledger.settlement(pending.tenant_id, pending.event_id, pending.hold_pico, amount_pico)
            for pending, amount_pico in paid
        ],
    )
    await budgets.settle(
        tx,
        [
            (
                TenantOwner(pending.tenant_id),
                [BudgetHold.from_json(value) for value in pending.budget_holds],
                amount_pico,
            )
            for pending, amount_pico in paid
            if pending.budget_holds
        ],
    )


def _event(ending: Ending, amount_pico: int, replica_seq: int, recorded_at_ms: int) -> Values:
    pending = ending.pending
    usage = Usage(0, 0) if ending.outcome == "lost" else ending.usage
    return {
        "event_id": pending.event_id,
        "tenant_id": pending.tenant_id,
        "project_id": pending.project_id,
        "api_key_id": pending.api_key_id,
        "model": pending.model,
        "base_model": pending.base_model,
        "adapter_id": pending.adapter_id,
        "adapter_version": pending.adapter_version,
        "adapter_digest": pending.adapter_digest,
        "started_at_ms": pending.started_at_ms,
        "replica_id": pending.replica_id,
        "engine_id": pending.engine_id,
        "price_id": pending.price_id,
        "ended_at_ms": max(pending.started_at_ms, recorded_at_ms - ending.delay_ms),
        "recorded_at_ms": recorded_at_ms,
        "prompt_tokens": usage.num_prompt_tokens,
        "cached_prompt_tokens": usage.num_cached_tokens,
        "completion_tokens": usage.num_completion_tokens,
        "finish_reason": ending.finish_reason,
        "outcome": ending.outcome,
        "amount_pico": amount_pico,
        "replica_seq": replica_seq,
        "schema_version": EVENT_SCHEMA_VERSION,
    }
