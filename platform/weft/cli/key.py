"""`weft key`: API keys in the data folder's database. A key is shown once, when it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli.output import DataOption, JsonOption, err, out, print_json, print_rows
from weft.settings import DEFAULT_DATA_DIR

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from weft.tenancy.secret_files import SecretFiles

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)
Tenant = Annotated[str, typer.Argument(help="The tenant's name or id.")]
_DAY_S = 86_400


@app.command("create")
def create(
    tenant: Tenant,
    name: Annotated[str, typer.Option(help="A label for the key.")] = "",
    scope: Annotated[
        list[str] | None, typer.Option(help="A scope; repeat for several. Default: all.")
    ] = None,
    expires_in_days: Annotated[int | None, typer.Option(min=1, help="Default: never.")] = None,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Create a key; its text is printed now and never again."""
    from weft.cli.control import run_in_transaction
    from weft.db.ids import now
    from weft.tenancy import service
    from weft.tenancy.principal import ALL_SCOPES
    from weft.tenancy.schemas import new_key_to_wire

    async def work(session: AsyncSession, secrets: SecretFiles) -> dict[str, object]:
        new_key = await service.create_tenant_key(
            session,
            tenant,
            secrets.pepper,
            name=name,
            scopes=scope or ALL_SCOPES,
            expires_at=None if expires_in_days is None else now() + expires_in_days * _DAY_S,
        )
        return new_key_to_wire(new_key)

    key = run_in_transaction(data, work)
    if as_json:
        print_json(key)
    else:
        err.print("Keep this key now: it is not shown again.")
        out.print(str(key["value"]), markup=False)


@app.command("list")
def list_(tenant: Tenant, data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List a tenant's keys, without their secrets."""
    from weft.cli.control import run_in_transaction
    from weft.tenancy import service
    from weft.tenancy.schemas import key_to_wire

    async def work(session: AsyncSession, _secrets: SecretFiles) -> list[dict[str, object]]:
        return [key_to_wire(row) for row in await service.list_tenant_keys(session, tenant)]

    rows = run_in_transaction(data, work)
    columns = ("id", "name", "redacted_value", "scopes", "expires_at", "revoked_at")
    print_rows(rows, columns, as_json=as_json)


@app.command("revoke")
def revoke(
    tenant: Tenant,
    key_id: Annotated[str, typer.Argument(help="The key's id, the third part of its text.")],
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key: the next request with it is refused."""
    from weft.cli.control import run_in_transaction
    from weft.tenancy import service
    from weft.tenancy.schemas import key_to_wire

    async def work(session: AsyncSession, _secrets: SecretFiles) -> dict[str, object]:
        return key_to_wire(await service.revoke_tenant_key(session, tenant, key_id))

    key = run_in_transaction(data, work)
    if as_json:
        print_json(key)
    else:
        out.print(f"Revoked key {key_id}.", markup=False)
