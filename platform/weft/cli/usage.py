"""`weft usage`: what a tenant used and what it costs, from the server's database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from weft.cli.output import DataOption, JsonOption, fail, print_rows
from weft.settings import DEFAULT_DATA_DIR

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from weft.tenancy.secret_files import SecretFiles
    from weft.usage.report_repository import Grouping

_DAY_S = 86_400
_GROUPS: dict[str, Grouping] = {"model": "model", "project": "project_id", "key": "api_key_id"}
Day = Annotated[str | None, typer.Option(help="A day of UTC, such as 2026-11-01.")]


def usage(
    tenant: Annotated[str, typer.Argument(help="The tenant's name or id.")],
    since: Day = None,
    until: Day = None,
    by: Annotated[
        Literal["model", "project", "key"], typer.Option(help="What to add up by.")
    ] = "model",
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Show a tenant's tokens and their cost by day, of the last 30 days or from --since on.

    --until is the last day. Costs are exact, before invoices round them.
    """
    from weft.billing.schemas import dollars
    from weft.cli.control import run_in_transaction
    from weft.db.ids import now
    from weft.tenancy.service import get_owner
    from weft.usage.report_repository import ReportFilter, ReportRepository
    from weft.usage.reports import create_span

    end_at = now() + 1 if until is None else _day(until) + _DAY_S
    start_at = end_at - 30 * _DAY_S if since is None else _day(since)

    async def work(session: AsyncSession, _secrets: SecretFiles) -> list[dict[str, Any]]:
        owner = await get_owner(session, tenant)
        num_days = (end_at - start_at) // _DAY_S + 2
        span = create_span(start_at, end_at, _DAY_S, num_days, None)
        totals = await ReportRepository(session).sum_up(owner, span, [_GROUPS[by]], ReportFilter())
        return [
            {
                "day": datetime.fromtimestamp(bucket, UTC).strftime("%Y-%m-%d"),
                by: values[0],
                "requests": total.num_requests,
                "input_tokens": total.prompt_tokens,
                "cached_tokens": total.cached_prompt_tokens,
                "output_tokens": total.completion_tokens,
                "cost_usd": dollars(total.amount_pico),
            }
            for (bucket, values), total in sorted(totals.items())
        ]

    rows = run_in_transaction(data, work)
    columns = ("day", by, "requests", "input_tokens", "cached_tokens", "output_tokens", "cost_usd")
    print_rows(rows, columns, as_json=as_json)


def _day(text: str) -> int:
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError as error:
        raise fail(f"a day is written as 2026-11-01, not {text}") from error
