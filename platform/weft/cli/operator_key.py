"""`weft key operator`: operators' keys in the server's database, beside the data folder's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.output import DataOption, JsonOption, err, out, print_json, print_rows
from weft.settings import DEFAULT_DATA_DIR

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from weft.tenancy.secret_files import SecretFiles

app = typer.Typer(help="Keys of those who operate the server.", no_args_is_help=True)
KeyId = Annotated[str, typer.Argument(help="The key's id, the third part of its text.")]
Grace = Annotated[
    float, typer.Option(min=0, max=720, help="Hours for which the former secret stays right.")
]
_DAY_S = 86_400


def expiry(days: int | None) -> int | None:
    """Unix seconds."""
    from weft.db.ids import now

    return None if days is None else now() + days * _DAY_S


def print_new(key: dict[str, Any], *, as_json: bool) -> None:
    """A key with its secret."""
    if as_json:
        print_json(key)
    else:
        err.print("Keep this key now: it is not shown again.")
        out.print(str(key["value"]), markup=False)


@app.command("create")
def create(
    name: Annotated[str, typer.Option(help="A label for the key.")] = "",
    permission: Annotated[
        list[str] | None, typer.Option(help="A permission; repeat for several. Default: all.")
    ] = None,
    expires_in_days: Annotated[int | None, typer.Option(min=1, help="Default: never.")] = None,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Create an operator's key; its text is printed now and never again."""
    from weft.cli.control import run_in_transaction
    from weft.tenancy import key_schemas, key_service

    async def work(session: AsyncSession, secrets: SecretFiles) -> dict[str, Any]:
        made = await key_service.create_operator_key(
            session,
            secrets.pepper,
            None,
            name=name,
            permissions=permission,
            expires_at=expiry(expires_in_days),
        )
        return key_schemas.new_operator_key_object(made).model_dump()

    print_new(run_in_transaction(data, work, creates=True), as_json=as_json)


@app.command("list")
def list_(data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List operators' keys, without their secrets and without the data folder's own."""
    from weft.cli.control import run_in_transaction
    from weft.db.paging import PageRequest
    from weft.tenancy.key_repository import KeyRepository
    from weft.tenancy.key_schemas import operator_key_object

    async def work(session: AsyncSession, _secrets: SecretFiles) -> list[dict[str, Any]]:
        page = PageRequest(limit=10**9, order="asc")
        found = await KeyRepository(session).list_operator_keys(page)
        return [operator_key_object(row).model_dump() for row in found.rows]

    rows = run_in_transaction(data, work)
    columns = ("id", "name", "redacted_value", "status", "expires_at", "last_used_at", "role")
    print_rows(rows, columns, as_json=as_json)


@app.command("rotate")
def rotate(
    key_id: KeyId,
    grace_hours: Grace = 24.0,
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Give a key a new secret; the former one stays right for the grace."""
    from weft.cli.control import run_in_transaction
    from weft.tenancy import key_schemas, key_service

    async def work(session: AsyncSession, secrets: SecretFiles) -> dict[str, Any]:
        row = await key_service.get_operator_key(session, key_id)
        rotated = await key_service.rotate(
            session, row, secrets.pepper, None, int(grace_hours * 3600)
        )
        return key_schemas.new_operator_key_object(rotated).model_dump()

    print_new(run_in_transaction(data, work), as_json=as_json)


@app.command("revoke")
def revoke(key_id: KeyId, data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Revoke a key for good. A server refuses it within seconds."""
    from weft.cli.control import run_in_transaction
    from weft.tenancy import key_schemas, key_service

    async def work(session: AsyncSession, _secrets: SecretFiles) -> dict[str, Any]:
        row = await key_service.get_operator_key(session, key_id)
        await key_service.revoke(session, row, None)
        return key_schemas.operator_key_object(row).model_dump()

    key = run_in_transaction(data, work)
    if as_json:
        print_json(key)
    else:
        out.print(f"Revoked key {key_id}.", markup=False)
