"""`weft key`: keys in the server's database. A key's text is shown once, when it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli import operator_key
from weft.cli.output import DataOption, JsonOption, fail, out, print_json, print_rows
from weft.settings import DEFAULT_DATA_DIR

if TYPE_CHECKING:
    from pydantic import BaseModel
    from sqlalchemy.ext.asyncio import AsyncSession

    from weft.tenancy.models import AdminKey, ApiKey
    from weft.tenancy.secret_files import SecretFiles

app = typer.Typer(help="Create, list, change, rotate and revoke keys.", no_args_is_help=True)
app.add_typer(operator_key.app, name="operator")
Tenant = Annotated[str, typer.Argument(help="The tenant's name or id.")]
KeyId = Annotated[str, typer.Argument(help="The key's id, the third part of its text.")]
Admin = Annotated[
    bool, typer.Option("--admin", help="Of keys that administer the tenant, not of its projects'.")
]
COLUMNS = ("id", "name", "redacted_value", "status", "expires_at", "last_used_at")


@app.command("create")
def create(
    tenant: Tenant,
    name: Annotated[str, typer.Option(help="A label for the key.")] = "",
    project: Annotated[
        str | None, typer.Option(help="A project's name or id. Default: the default project.")
    ] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="A scope; repeat for several. Default: all.")
    ] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="A key that administers the tenant.")
    ] = False,
    role: Annotated[
        str | None, typer.Option(help="With --admin: the role whose permissions it has.")
    ] = None,
    permission: Annotated[
        list[str] | None,
        typer.Option(help="With --admin: a permission; repeat for several. Default: all."),
    ] = None,
    expires_in_days: Annotated[int | None, typer.Option(min=1, help="Default: never.")] = None,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Create a key; its text is printed now and never again."""
    from weft.cli.control import run_in_transaction
    from weft.tenancy import key_schemas, key_service, service

    if admin and (scope or project):
        raise typer.BadParameter("keys with --admin have no scopes and no project")
    if not admin and (role or permission):
        raise typer.BadParameter("--role and --permission are for keys with --admin")
    expires_at = operator_key.expiry(expires_in_days)

    async def work(session: AsyncSession, secrets: SecretFiles) -> BaseModel:
        owner = await service.get_owner(session, tenant)
        if admin:
            made = await key_service.create_admin_key(
                session,
                owner.tenant_id,
                secrets.pepper,
                None,
                name=name,
                permissions=key_schemas.granted(role, permission),
                expires_at=expires_at,
            )
            return key_schemas.new_admin_key_object(made)
        found = await service.find_project_to_use(session, owner, project)
        key = await key_service.create_project_key(
            session, found, secrets.pepper, None, name=name, scopes=scope, expires_at=expires_at
        )
        return key_schemas.new_project_key_object(key)

    operator_key.print_new(run_in_transaction(data, work).model_dump(), as_json=as_json)


@app.command("list")
def list_(
    tenant: Tenant,
    admin: Admin = False,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """List a tenant's keys, without their secrets."""
    from weft.cli.control import run_in_transaction
    from weft.db.paging import PageRequest
    from weft.tenancy import key_schemas, service
    from weft.tenancy.key_repository import KeyRepository

    everything = PageRequest(limit=10**9, order="asc")

    async def work(session: AsyncSession, _secrets: SecretFiles) -> list[dict[str, Any]]:
        owner = await service.get_owner(session, tenant)
        repository = KeyRepository(session)
        if admin:
            admin_keys = await repository.list_admin_keys(owner, everything)
            return [key_schemas.admin_key_object(row).model_dump() for row in admin_keys.rows]
        keys = await repository.list_project_keys(owner, everything)
        return [key_schemas.project_key_object(row).model_dump() for row in keys.rows]

    rows = run_in_transaction(data, work)
    columns = (*COLUMNS, "role") if admin else (*COLUMNS, "project_id", "scopes")
    print_rows(rows, columns, as_json=as_json)


@app.command("update")
def update(
    tenant: Tenant,
    key_id: KeyId,
    name: Annotated[str | None, typer.Option(help="A new label.")] = None,
    grant: Annotated[
        list[str] | None,
        typer.Option(help="A scope, or an admin key's permission, instead of what it has; repeat."),
    ] = None,
    block: Annotated[bool | None, typer.Option("--block/--unblock", help="Refuse it.")] = None,
    expires_in_days: Annotated[int | None, typer.Option(min=1)] = None,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Change a key; what is not named stays. A server takes it up within seconds."""
    from weft.cli.control import run_in_transaction
    from weft.tenancy import key_service, service

    wanted = key_service.KeyChange(
        name=name,
        expires_at=operator_key.expiry(expires_in_days),
        is_blocked=block,
        grants=grant,
    )

    async def work(session: AsyncSession, _secrets: SecretFiles) -> dict[str, Any]:
        row = await key_service.get_tenant_key(
            session, await service.get_owner(session, tenant), key_id
        )
        await key_service.change(session, row, None, wanted)
        return _shown(row)

    key = run_in_transaction(data, work)
    if as_json:
        print_json(key)
    else:
        out.print(f"Changed key {key_id}.", markup=False)


@app.command("rotate")
def rotate(
    tenant: Tenant,
    key_id: KeyId,
    grace_hours: operator_key.Grace = 24.0,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Give a key a new secret; the former one stays right for the grace."""
    from weft.cli.control import run_in_transaction
    from weft.tenancy import key_service, service

    async def work(session: AsyncSession, secrets: SecretFiles) -> dict[str, Any]:
        row = await key_service.get_tenant_key(
            session, await service.get_owner(session, tenant), key_id
        )
        rotated = await key_service.rotate(
            session, row, secrets.pepper, None, int(grace_hours * 3600)
        )
        return {**_shown(row), "value": rotated.text}

    operator_key.print_new(run_in_transaction(data, work), as_json=as_json)


@app.command("revoke")
def revoke(
    tenant: Tenant,
    key_id: KeyId,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key for good. A server refuses it within seconds."""
    from weft.cli.control import run_in_transaction
    from weft.tenancy import key_service, service

    async def work(session: AsyncSession, _secrets: SecretFiles) -> dict[str, Any]:
        row = await key_service.get_tenant_key(
            session, await service.get_owner(session, tenant), key_id
        )
        await key_service.revoke(session, row, None)
        return _shown(row)

    key = run_in_transaction(data, work)
    if as_json:
        print_json(key)
    else:
        out.print(f"Revoked key {key_id}.", markup=False)


@app.command("adopt-secret")
def adopt_secret(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data: DataOption = DEFAULT_DATA_DIR,
) -> None:
    """Where the master secret of the database's keys is lost: use this data folder's from now on.
    Keys that were made with the lost one stay refused."""
    import os

    from weft.cli.options import from_environment
    from weft.db.schema import SchemaMismatchError
    from weft.db.urls import database_url
    from weft.settings import database_file
    from weft.tenancy import installation
    from weft.tenancy.secret_files import SecretFileError

    if not yes:
        typer.confirm("All keys made with the former secret stop working. Go on?", abort=True)
    url = database_url(from_environment(os.environ).get("database_url"), database_file(data))
    try:
        installation.adopt_secret(data, url)
    except (SchemaMismatchError, SecretFileError, OSError) as error:
        raise fail(str(error)) from error
    out.print("The database takes this data folder's secret now.", markup=False)


def _shown(row: ApiKey | AdminKey) -> dict[str, Any]:
    from weft.tenancy import key_schemas
    from weft.tenancy.models import ApiKey

    if isinstance(row, ApiKey):
        return key_schemas.project_key_object(row).model_dump()
    return key_schemas.admin_key_object(row).model_dump()
