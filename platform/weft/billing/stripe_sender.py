"""Sends usage to Stripe so that each token is counted there once, whatever is killed when.

An event is an hour's tokens of one meter. It is written down before it is sent, with a value that
never changes; it is marked as being sent before it is, and sent again with the same identifier
until Stripe has it. Stripe forgets identifiers after a day: an event that has been on its way for
longer may have arrived, so it is left to a person. What an hour has more than was sent is another
event; where it has less, events of the last day are cancelled and the hour is sent anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import Actor, Target, record
from weft.billing.charges import METERS, Meter
from weft.billing.meter_event_repository import MeterEventRepository
from weft.billing.models import BillingCustomer, MeterEventRow
from weft.billing.periods import HOUR_S
from weft.billing.stripe import (
    MeterEvent,
    StripeClient,
    StripeRefusedError,
    StripeUnavailableError,
)
from weft.db.database import Database
from weft.db.dialect import db_now_ms
from weft.db.leases import create_holder, run_alone
from weft.db.scope import Owner, TenantOwner
from weft.errors import ConflictError, InvalidRequestError
from weft.usage.report_repository import ReportFilter, ReportRepository, UsageTotal
from weft.usage.reports import Span

SINK = "stripe"
EVENT_NAMES: dict[Meter, str] = {
    "input": "weft_input_tokens",
    "cached_input": "weft_cached_input_tokens",
    "output": "weft_output_tokens",
}
# after an hour's end its requests have ended as well, nearly always: the others make an event more
SETTLING_S = 600
LOOKBACK_S = 3 * 86_400
# less than the day for which Stripe knows identifiers and lets events be cancelled
KNOWN_S = 23 * HOUR_S
COUNTED = ("pending", "sending", "sent", "unknown")


@dataclass(frozen=True, slots=True)
class SendResult:
    """What one run came to. `num_waiting` are sent the next time, `num_stuck` need a person."""

    num_sent: int
    num_waiting: int
    num_stuck: int
    problem: str = ""


async def set_customer(
    session: AsyncSession, tenant_id: str, customer_id: str, actor: Actor
) -> None:
    """What Stripe calls a tenant. ConflictError where another tenant is called so."""
    if not customer_id.isascii() or not customer_id.isprintable() or len(customer_id) > 128:
        raise InvalidRequestError("This is no customer of Stripe's.", param="customer_id")
    repository, owner = MeterEventRepository(session), TenantOwner(tenant_id)
    found = await repository.find_owner_of(SINK, customer_id)
    if found is not None and found.tenant_id != tenant_id:
        raise ConflictError(f"{customer_id} is another tenant.", param="customer_id")
    await repository.delete_customer(SINK, owner)
    repository.add(BillingCustomer(sink=SINK, customer_id=customer_id, tenant_id=tenant_id))
    await repository.flush()
    changes = {"sink": SINK, "customer_id": customer_id}
    await record(session, actor, "billing_customer.updated", Target(tenant_id, tenant_id), changes)


class StripeSender:
    """One process at a time sends; several do no harm."""

    def __init__(self, database: Database, client: StripeClient) -> None:
        self._database = database
        self._client = client

    async def run(self) -> SendResult:
        """Write down what is due and send all that waits. ConflictError while another does it."""
        done = await run_alone(self._database, "stripe", create_holder(), self._run)
        if done is None:
            raise ConflictError("Usage is being sent at this moment.", code="sending")
        return done

    async def _run(self) -> SendResult:
        async with self._database.reading() as session:
            customers = await MeterEventRepository(session).list_customers(SINK)
        names = {row.tenant_id: row.customer_id for row in customers}
        num_sent, problem = 0, ""
        try:
            for tenant_id in names:
                for row in await self._write_down(TenantOwner(tenant_id)):
                    await self._cancel(row)
                # what was cancelled is due again
                await self._write_down(TenantOwner(tenant_id))
            num_sent, problem = await self._send_waiting(names)
        except StripeUnavailableError as error:
            problem = str(error)
        async with self._database.reading() as session:
            repository = MeterEventRepository(session)
            waiting = await repository.list_in_state("pending", "sending")
            stuck = await repository.list_in_state("unknown", "refused")
        return SendResult(num_sent, len(waiting), len(stuck), problem)

    async def _write_down(self, owner: Owner) -> list[MeterEventRow]:
        """Events for what was not sent yet; returns those that are to be cancelled."""
        to_cancel: list[MeterEventRow] = []
        async with self._database.writing() as session:
            now = await db_now_ms(session) // 1000
            end_at = (now - SETTLING_S) // HOUR_S * HOUR_S
            span = Span(end_at - LOOKBACK_S, end_at, HOUR_S, None)
            totals = await ReportRepository(session).sum_up(owner, span, (), ReportFilter())
            repository = MeterEventRepository(session)
            before: dict[tuple[int, str], list[MeterEventRow]] = {}
            for row in await repository.list_since(owner, span.start_at):
                before.setdefault((row.hour_at, row.meter), []).append(row)
            for hour_at in span.bucket_starts:
                used = totals.get((hour_at, ()), UsageTotal())
                for meter in METERS:
                    rows = before.get((hour_at, meter), [])
                    counted = [row for row in rows if row.state in COUNTED]
                    missing = tokens_of(used, meter) - sum(row.num_tokens for row in counted)
                    if missing > 0 and not any(row.state == "refused" for row in rows):
                        repository.add(_event_row(owner, hour_at, meter, len(rows), missing, now))
                    elif missing < 0:
                        to_cancel += [row for row in counted if _may_cancel(row, now)]
        return to_cancel

    async def _send_waiting(self, names: dict[str, str]) -> tuple[int, str]:
        """(how many were sent, why no more were)."""
        async with self._database.reading() as session:
            rows = await MeterEventRepository(session).list_in_state("pending", "sending")
        num_sent = 0
        for row in rows:
            customer_id = names.get(row.tenant_id)
            if customer_id is None or not await self._mark_sending(row):
                continue
            name = EVENT_NAMES[row.meter]  # type: ignore[index]  # only meters are ever written
            event = MeterEvent(name, row.identifier, customer_id, row.num_tokens, row.timestamp_at)
            try:
                await self._client.send(event)
            except StripeRefusedError as error:
                await self._set_state(row, "refused", str(error))
                continue
            except StripeUnavailableError as error:
                return num_sent, str(error)
            await self._set_state(row, "sent")
            num_sent += 1
        return num_sent, ""

    async def _mark_sending(self, row: MeterEventRow) -> bool:
        """False for one that Stripe may have and have forgotten."""
        async with self._database.writing() as session:
            found = await MeterEventRepository(session).find(row.identifier)
            assert found is not None, "meter events stay"
            now = await db_now_ms(session) // 1000
            if found.sent_at is not None and now - found.sent_at > KNOWN_S:
                found.state = "unknown"
                found.problem = "on its way for longer than Stripe knows identifiers"
                return False
            found.state = "sending"
            if found.sent_at is None:
                found.sent_at = now
        return True

    async def _cancel(self, row: MeterEventRow) -> None:
        name = EVENT_NAMES[row.meter]  # type: ignore[index]  # only meters are ever written
        try:
            await self._client.cancel(name, row.identifier)
        except StripeRefusedError as error:
            await self._set_state(row, "unknown", f"not cancelled: {error}")
            return
        await self._set_state(row, "cancelled")

    async def _set_state(self, row: MeterEventRow, state: str, problem: str | None = None) -> None:
        async with self._database.writing() as session:
            found = await MeterEventRepository(session).find(row.identifier)
            assert found is not None, "meter events stay"
            found.state = state
            found.problem = None if problem is None else problem[:255]


def tokens_of(used: UsageTotal, meter: Meter) -> int:
    if meter == "output":
        return used.completion_tokens
    if meter == "cached_input":
        return used.cached_prompt_tokens
    return used.prompt_tokens - used.cached_prompt_tokens


def _may_cancel(row: MeterEventRow, now: int) -> bool:
    return row.state == "sent" and row.sent_at is not None and now - row.sent_at < KNOWN_S


def _event_row(
    owner: Owner, hour_at: int, meter: Meter, number: int, num_tokens: int, now: int
) -> MeterEventRow:
    return MeterEventRow(
        identifier=f"{owner.tenant_id}:{meter}:{hour_at}:s{number}",
        tenant_id=owner.tenant_id,
        hour_at=hour_at,
        meter=meter,
        num_tokens=num_tokens,
        timestamp_at=hour_at,
        state="pending",
        created_at=now,
        sent_at=None,
        problem=None,
    )
