"""The check of `weft billing verify` on what Stripe was told: each token once, under its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from weft.billing.charges import METERS
from weft.billing.meter_event_repository import MeterEventRepository
from weft.billing.models import MeterEventRow
from weft.billing.periods import HOUR_S
from weft.billing.stripe_sender import COUNTED, LOOKBACK_S, SETTLING_S, tokens_of
from weft.db.dialect import db_now_ms
from weft.db.scope import TenantOwner
from weft.usage.report_repository import ReportFilter, ReportRepository, UsageTotal
from weft.usage.reports import Span
from weft.usage.verification import CheckResult


async def check_meter_events(session: AsyncSession) -> CheckResult:
    """From a tenant's first event on, each hour's events come to its tokens.

    What is not sent yet is told while it may still be, and differs from then on; so does what needs
    a person. Of Stripe's own counts nothing is known here.
    """
    repository = MeterEventRepository(session)
    # as the sender sees the hours that are over
    end_at = (await db_now_ms(session) // 1000 - SETTLING_S) // HOUR_S * HOUR_S
    differences: list[str] = []
    num_events = num_waiting = 0
    for tenant_id in await repository.list_tenants():
        owner = TenantOwner(tenant_id)
        rows = await repository.list_since(owner, 0)
        num_events += len(rows)
        differences += _check_rows(rows)
        span = Span(min(row.hour_at for row in rows), end_at, HOUR_S, None)
        totals = await ReportRepository(session).sum_up(owner, span, (), ReportFilter())
        used = {hour_at: total for (hour_at, _), total in totals.items()}
        for (hour_at, meter), missing in _missing(rows, used).items():
            if missing > 0 and hour_at >= end_at - LOOKBACK_S:
                num_waiting += 1
                continue
            differences.append(
                f"tenant {tenant_id} has used {abs(missing)} {meter} tokens "
                f"{'more' if missing > 0 else 'less'} than Stripe was told of hour {hour_at}"
            )
    note = f"{num_events} events, {num_waiting} hours of meters are not told yet"
    return CheckResult.of("meter events", note, differences)


def _check_rows(rows: Sequence[MeterEventRow]) -> Iterator[str]:
    for row in rows:
        name, _, number = row.identifier.rpartition(":s")
        if name != f"{row.tenant_id}:{row.meter}:{row.hour_at}" or not number.isdigit():
            yield f"meter event {row.identifier} is not of its tenant, meter and hour"
        if row.state in ("sent", "cancelled") and row.sent_at is None:
            yield f"meter event {row.identifier} is {row.state} and was never on its way"
        if row.state in ("refused", "unknown"):
            yield f"meter event {row.identifier} needs a person, {row.state}: {row.problem}"


def _missing(
    rows: Sequence[MeterEventRow], used: Mapping[int, UsageTotal]
) -> dict[tuple[int, str], int]:
    """By hour and meter, tokens that are in no event; below 0: events have more than was used."""
    found: dict[tuple[int, str], int] = {
        (hour_at, meter): tokens_of(total, meter)
        for hour_at, total in used.items()
        for meter in METERS
    }
    for row in rows:
        if row.state in COUNTED:
            key = (row.hour_at, row.meter)
            found[key] = found.get(key, 0) - row.num_tokens
    return {key: missing for key, missing in found.items() if missing}
