"""`weft project`: a tenant's projects in the server's database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.output import DataOption, JsonOption, out, print_json, print_rows
from weft.settings import DEFAULT_DATA_DIR

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from weft.tenancy.secret_files import SecretFiles

app = typer.Typer(help="Create, list and archive a tenant's projects.", no_args_is_help=True)
Tenant = Annotated[str, typer.Argument(help="The tenant's name or id.")]
Project = Annotated[str, typer.Argument(help="The project's name or id.")]


@app.command("create")
def create(
    tenant: Tenant,
    name: Annotated[str, typer.Argument(help="The project's name.")],
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Create a project."""
    from weft.cli.control import run_in_transaction
    from weft.tenancy import service
    from weft.tenancy.schemas import ProjectObject

    async def work(session: AsyncSession, _secrets: SecretFiles) -> dict[str, Any]:
        owner = await service.get_owner(session, tenant)
        return ProjectObject.of(await service.create_project(session, owner, name)).model_dump()

    project = run_in_transaction(data, work)
    if as_json:
        print_json(project)
    else:
        out.print(f"Created project {name} ({project['id']}).", markup=False)


@app.command("list")
def list_(
    tenant: Tenant,
    archived: Annotated[bool, typer.Option("--archived", help="Archived ones as well.")] = False,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """List a tenant's projects."""
    from weft.cli.control import run_in_transaction
    from weft.db.paging import PageRequest
    from weft.tenancy import service
    from weft.tenancy.repository import TenantRepository
    from weft.tenancy.schemas import ProjectObject

    async def work(session: AsyncSession, _secrets: SecretFiles) -> list[dict[str, Any]]:
        found = await TenantRepository(session).list_projects(
            await service.get_owner(session, tenant),
            PageRequest(limit=10**9, order="asc"),
            include_archived=archived,
        )
        return [ProjectObject.of(row).model_dump() for row in found.rows]

    rows = run_in_transaction(data, work)
    print_rows(rows, ("id", "name", "status", "created_at", "archived_at"), as_json=as_json)


@app.command("archive")
def archive(
    tenant: Tenant,
    project: Project,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Archive a project for good: its keys stop working, its usage stays on record."""
    from weft.cli.control import run_in_transaction
    from weft.tenancy import service
    from weft.tenancy.schemas import ProjectObject

    async def work(session: AsyncSession, _secrets: SecretFiles) -> dict[str, Any]:
        owner = await service.get_owner(session, tenant)
        found = await service.find_project_to_use(session, owner, project)
        row = await service.archive_project(session, owner, found.id)
        return ProjectObject.of(row).model_dump()

    archived = run_in_transaction(data, work)
    if as_json:
        print_json(archived)
    else:
        out.print(f"Archived project {archived['name']} ({archived['id']}).", markup=False)
