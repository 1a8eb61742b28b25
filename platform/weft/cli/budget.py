"""`weft budget`: budgets in the server's database. A budget holds for the next request."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.output import DataOption, JsonOption, fail, out, print_json, print_rows
from weft.cli.subject import (
    AdapterOption,
    BaseOption,
    KeyOption,
    ProjectOption,
    SubjectOptions,
    TenantOption,
    owner_of,
    subject_text,
)
from weft.settings import DEFAULT_DATA_DIR

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from weft.limits.subjects import Period
    from weft.tenancy.secret_files import SecretFiles

app = typer.Typer(help="Create, change, list and delete budgets.", no_args_is_help=True)
Amount = Annotated[str, typer.Argument(help="In US dollars, as 12.50.")]
BudgetId = Annotated[str, typer.Argument(help="The budget's id.")]


def _pico(amount: str) -> int:
    from weft.limits.money import to_pico

    try:
        return to_pico(Decimal(amount))
    except (InvalidOperation, ValueError) as error:
        raise fail(f"{amount!r} is no amount in US dollars") from error


def _period(text: str) -> Period:
    from weft.limits.subjects import PERIODS

    for period in PERIODS:
        if text == period:
            return period
    raise fail(f"--period is one of {', '.join(PERIODS)}, not {text!r}")


@app.command("create")
def create(
    amount: Amount,
    tenant: TenantOption = None,
    project: ProjectOption = None,
    key: KeyOption = None,
    adapter: AdapterOption = None,
    base: BaseOption = None,
    period: Annotated[str, typer.Option(help="day, month or total; in UTC.")] = "month",
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Create a budget; it counts what begins from now on."""
    from weft.cli.control import run_in_transaction
    from weft.db.ids import now
    from weft.limits import service
    from weft.limits.schemas import BudgetObject

    given = SubjectOptions(tenant, project, key, adapter, base)
    given.check()
    limit_pico, each = _pico(amount), _period(period)

    async def work(session: AsyncSession, _secrets: SecretFiles) -> dict[str, Any]:
        owner, subject = await given.find(session)
        row = await service.create_budget(session, owner, subject, each, limit_pico)
        return BudgetObject.of(row, now()).model_dump()

    _say("Created", run_in_transaction(data, work), as_json=as_json)


@app.command("set")
def set_(
    budget_id: BudgetId,
    amount: Amount,
    tenant: TenantOption = None,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Change a budget's amount; what was spent stays."""
    from weft.cli.control import run_in_transaction
    from weft.db.ids import now
    from weft.limits import service
    from weft.limits.models import Budget
    from weft.limits.schemas import BudgetObject

    limit_pico = _pico(amount)

    async def work(session: AsyncSession, _secrets: SecretFiles) -> dict[str, Any]:
        owner = await owner_of(session, tenant)
        row = await service.get_row(session, owner, Budget, budget_id)
        row = await service.update_budget(session, row, limit_pico)
        return BudgetObject.of(row, now()).model_dump()

    _say("Changed", run_in_transaction(data, work), as_json=as_json)


@app.command("list")
def list_(
    tenant: TenantOption = None, data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False
) -> None:
    """List a tenant's budgets with what is spent, or without a tenant the bases'."""
    from weft.cli.control import run_in_transaction
    from weft.db.ids import now
    from weft.db.paging import PageRequest
    from weft.limits.limit_repository import LimitAdminRepository
    from weft.limits.models import Budget
    from weft.limits.schemas import BudgetObject

    async def work(session: AsyncSession, _secrets: SecretFiles) -> list[dict[str, Any]]:
        repository = LimitAdminRepository(session, await owner_of(session, tenant))
        page = await repository.list_rows(Budget, PageRequest(limit=10**9, order="asc"))
        return [BudgetObject.of(row, now()).model_dump() for row in page.rows]

    rows = run_in_transaction(data, work)
    if not as_json:
        rows = [{**row, "subject": subject_text(row)} for row in rows]
    columns = ("id", "subject", "period", "limit_usd", "spent_usd", "held_usd")
    print_rows(rows, columns, as_json=as_json)


@app.command("delete")
def delete(
    budget_id: BudgetId,
    tenant: TenantOption = None,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Delete a budget: of a tenant, or without a tenant of a base."""
    from weft.cli.control import run_in_transaction
    from weft.limits import service
    from weft.limits.models import Budget

    async def work(session: AsyncSession, _secrets: SecretFiles) -> str:
        owner = await owner_of(session, tenant)
        row = await service.get_row(session, owner, Budget, budget_id)
        await service.delete_row(session, owner, row)
        return row.id

    deleted = run_in_transaction(data, work)
    if as_json:
        print_json({"id": deleted, "object": "budget.deleted", "deleted": True})
    else:
        out.print(f"Deleted budget {deleted}.", markup=False)


def _say(what: str, budget: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(budget)
        return
    how = "in all" if budget["period"] == "total" else f"a {budget['period']}"
    may = f"{subject_text(budget)} may spend {budget['limit_usd']} USD {how}"
    out.print(f"{what} budget {budget['id']}: {may}.", markup=False)
