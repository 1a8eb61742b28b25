"""`weft limit`: rate limits and quotas in the server's database. A server heeds a change within
seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.output import DataOption, JsonOption, out, print_json, print_rows
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

    from weft.tenancy.secret_files import SecretFiles

app = typer.Typer(help="Set, list and delete limits.", no_args_is_help=True)
Count = Annotated[int | None, typer.Option(min=0, max=2**53)]


@app.command("set")
def set_(
    tenant: TenantOption = None,
    project: ProjectOption = None,
    key: KeyOption = None,
    adapter: AdapterOption = None,
    base: BaseOption = None,
    model: Annotated[
        str | None, typer.Option(help="With --project: of its requests to this model only.")
    ] = None,
    requests_per_minute: Count = None,
    tokens_per_minute: Count = None,
    max_running: Count = None,
    max_adapters: Count = None,
    max_versions: Count = None,
    max_stored_bytes: Count = None,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Set all limits of a subject; those not given are none of its own."""
    from weft.cli.control import run_in_transaction
    from weft.limits import service
    from weft.limits.schemas import LimitObject

    given = SubjectOptions(tenant, project, key, adapter, base)
    given.check()
    values = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_running": max_running,
        "max_adapters": max_adapters,
        "max_versions": max_versions,
        "max_stored_bytes": max_stored_bytes,
    }

    async def work(session: AsyncSession, _secrets: SecretFiles) -> dict[str, Any]:
        owner, subject = await given.find(session)
        row = await service.set_limit(session, owner, subject, values, model=model or "")
        return LimitObject.of(row).model_dump()

    limit = run_in_transaction(data, work)
    if as_json:
        print_json(limit)
    else:
        out.print(f"Set limit {limit['id']} of {subject_text(limit)}.", markup=False)


@app.command("list")
def list_(
    tenant: TenantOption = None, data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False
) -> None:
    """List a tenant's limits, or without a tenant the bases'."""
    from weft.cli.control import run_in_transaction
    from weft.db.paging import PageRequest
    from weft.limits import service
    from weft.limits.limit_repository import LimitAdminRepository
    from weft.limits.models import Limit
    from weft.limits.schemas import LimitObject

    async def work(session: AsyncSession, _secrets: SecretFiles) -> list[dict[str, Any]]:
        repository = LimitAdminRepository(session, await owner_of(session, tenant))
        page = await repository.list_rows(Limit, PageRequest(limit=10**9, order="asc"))
        return [LimitObject.of(row).model_dump() for row in page.rows]

    rows = run_in_transaction(data, work)
    if not as_json:
        rows = [{**row, "subject": subject_text(row)} for row in rows]
    columns = ("id", "subject", "model", *service.RATES, *service.QUOTAS)
    print_rows(rows, columns, as_json=as_json)


@app.command("delete")
def delete(
    limit_id: Annotated[str, typer.Argument(help="The limit's id.")],
    tenant: TenantOption = None,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Delete a limit: of a tenant, or without a tenant of a base."""
    from weft.cli.control import run_in_transaction
    from weft.limits import service
    from weft.limits.models import Limit

    async def work(session: AsyncSession, _secrets: SecretFiles) -> str:
        owner = await owner_of(session, tenant)
        row = await service.get_row(session, owner, Limit, limit_id)
        await service.delete_row(session, owner, row)
        return row.id

    deleted = run_in_transaction(data, work)
    if as_json:
        print_json({"id": deleted, "object": "limit.deleted", "deleted": True})
    else:
        out.print(f"Deleted limit {deleted}.", markup=False)
