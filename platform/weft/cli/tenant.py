"""`weft tenant`: tenants in the server's database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli.output import DataOption, JsonOption, out, print_json, print_rows
from weft.settings import DEFAULT_DATA_DIR

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from weft.tenancy.secret_files import SecretFiles

app = typer.Typer(help="Create, list, suspend and delete tenants.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The tenant's name or id.")]


@app.command("create")
def create(name: Name, data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Create a tenant with its default project."""
    from weft.cli.control import run_in_transaction
    from weft.tenancy import service
    from weft.tenancy.schemas import TenantObject

    async def work(session: AsyncSession, _secrets: SecretFiles) -> dict[str, object]:
        return TenantObject.of(await service.create_tenant(session, name)).model_dump()

    tenant = run_in_transaction(data, work, creates=True)
    if as_json:
        print_json(tenant)
    else:
        out.print(f"Created tenant {tenant['name']} ({tenant['id']}).", markup=False)


@app.command("list")
def list_(data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List all tenants."""
    from weft.cli.control import run_in_transaction
    from weft.db.paging import PageRequest
    from weft.tenancy import service
    from weft.tenancy.schemas import TenantObject

    async def work(session: AsyncSession, _secrets: SecretFiles) -> list[dict[str, object]]:
        page = await service.list_tenants(session, PageRequest(limit=10**9, order="asc"))
        return [TenantObject.of(tenant).model_dump() for tenant in page.rows]

    rows = run_in_transaction(data, work)
    print_rows(rows, ("id", "name", "status", "created_at"), as_json=as_json)


@app.command("update")
def update(
    name: Name,
    include_obfuscation: Annotated[
        bool,
        typer.Option(
            "--obfuscation/--no-obfuscation",
            help="Pad the events of its streams where a request does not say, so that their sizes "
            "do not tell what is in them.",
        ),
    ],
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Change what a tenant's requests get by default; a server does so within seconds."""
    from weft.cli.control import run_in_transaction
    from weft.tenancy import service
    from weft.tenancy.schemas import TenantObject

    async def work(session: AsyncSession, _secrets: SecretFiles) -> dict[str, object]:
        tenant = await service.update_tenant(session, name, include_obfuscation=include_obfuscation)
        return TenantObject.of(tenant).model_dump()

    tenant = run_in_transaction(data, work)
    if as_json:
        print_json(tenant)
    else:
        what = "are" if include_obfuscation else "are not"
        out.print(f"Streams of {tenant['name']} ({tenant['id']}) {what} padded.", markup=False)


@app.command("suspend")
def suspend(name: Name, data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Refuse a tenant's keys until it is resumed; a server does so within seconds."""
    _set_suspended(name, data, is_suspended=True, as_json=as_json)


@app.command("resume")
def resume(name: Name, data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Let a suspended tenant's keys work again."""
    _set_suspended(name, data, is_suspended=False, as_json=as_json)


def _set_suspended(name: str, data: Path, *, is_suspended: bool, as_json: bool) -> None:
    from weft.cli.control import run_in_transaction
    from weft.tenancy import service
    from weft.tenancy.schemas import TenantObject

    async def work(session: AsyncSession, _secrets: SecretFiles) -> dict[str, object]:
        act = service.suspend_tenant if is_suspended else service.resume_tenant
        return TenantObject.of(await act(session, name)).model_dump()

    tenant = run_in_transaction(data, work)
    if as_json:
        print_json(tenant)
    else:
        what = "Suspended" if is_suspended else "Resumed"
        out.print(f"{what} tenant {tenant['name']} ({tenant['id']}).", markup=False)


@app.command("delete")
def delete(name: Name, data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Delete a tenant: its keys stop working at once, its usage stays on record."""
    from weft.cli.control import run_in_transaction
    from weft.tenancy import service

    async def work(session: AsyncSession, _secrets: SecretFiles) -> str:
        return (await service.delete_tenant(session, name)).id

    tenant_id = run_in_transaction(data, work)
    if as_json:
        print_json({"id": tenant_id, "object": "tenant.deleted", "deleted": True})
    else:
        out.print(f"Deleted tenant {name} ({tenant_id}).", markup=False)
