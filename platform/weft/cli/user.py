"""`weft user`: people's accounts, in the server's database. Passwords are asked for or read from
stdin, never taken from a flag that others could see."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli.output import DataOption, JsonOption, err, fail, out, print_json, print_rows
from weft.settings import DEFAULT_DATA_DIR

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from weft.tenancy.secret_files import SecretFiles
    from weft.tenancy.user_models import User

app = typer.Typer(help="Create and manage people's accounts.", no_args_is_help=True)
Person = Annotated[str, typer.Argument(help="The person's e-mail address, or id.")]


@app.command("create")
def create(
    email: Annotated[str, typer.Argument(help="The person's e-mail address.")],
    name: Annotated[str, typer.Option(help="The person's name.")] = "",
    operator: Annotated[bool, typer.Option("--operator", help="Who runs the platform.")] = False,
    tenant: Annotated[
        str | None, typer.Option(help="Make the person a member of this tenant.")
    ] = None,
    role: Annotated[str, typer.Option(help="The role in the tenant.")] = "tenant-admin",
    data: DataOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Create an account; its password is asked for, or read from stdin."""
    from weft.cli.control import run_in_transaction
    from weft.tenancy import members, service, users
    from weft.tenancy.principal import TENANT_PERMISSIONS
    from weft.tenancy.user_schemas import UserObject

    password_hash = _hash(_read_password(), (email, name))

    async def work(session: AsyncSession, _secrets: SecretFiles) -> dict[str, object]:
        user = await users.create_user(
            session, email, name, password_hash=password_hash, is_operator=operator
        )
        if tenant is not None:
            known_role = members.check_role(role, TENANT_PERMISSIONS)
            owner = await service.get_tenant(session, tenant)
            await members.add_member(session, user, owner.id, known_role)
        changes = {"email": user.email, "is_operator": operator, "tenant": tenant}
        await _record(session, user, "user.added", changes)
        return UserObject.of(user).model_dump()

    user = run_in_transaction(data, work, creates=True)
    if as_json:
        print_json(user)
    else:
        out.print(f"Created the account of {user['email']} ({user['id']}).", markup=False)


@app.command("list")
def list_(data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List all accounts."""
    from weft.cli.control import run_in_transaction
    from weft.db.paging import PageRequest
    from weft.tenancy.user_repository import UserRepository
    from weft.tenancy.user_schemas import UserObject

    async def work(session: AsyncSession, _secrets: SecretFiles) -> list[dict[str, object]]:
        page = await UserRepository(session).list_users(PageRequest(limit=10**9, order="asc"))
        return [UserObject.of(user).model_dump() for user in page.rows]

    columns = ("id", "email", "name", "is_operator", "created_at", "disabled_at")
    print_rows(run_in_transaction(data, work), columns, as_json=as_json)


@app.command("set-password")
def set_password(
    person: Person, data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False
) -> None:
    """Set a password; it is asked for, or read from stdin. The person is signed out everywhere."""
    password = _read_password()

    async def work(session: AsyncSession, user: User, secrets: SecretFiles) -> None:
        from weft.tenancy.attempts import AttemptLimiter
        from weft.tenancy.session_repository import SessionRepository
        from weft.tenancy.user_repository import UserRepository

        user.password_hash = await _hash_async(password, (user.email, user.name))
        await UserRepository(session).delete_resets(user.id)
        await SessionRepository(session).close_all_of(user.id)
        await AttemptLimiter(secrets.derive("session")).forgive(session, user.email)
        await _record(session, user, "user.password_reset", {})

    _change(data, person, work, "Set the password of {email}.", as_json)


@app.command("reset")
def reset(person: Person, data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Print a token by which the person sets a new password, once and within an hour."""
    from weft.cli.control import run_in_transaction
    from weft.tenancy import users

    async def work(session: AsyncSession, _secrets: SecretFiles) -> dict[str, object]:
        user = await users.get_user(session, person)
        token, expires_at = await users.create_reset(session, user)
        await _record(session, user, "user.reset_created", {})
        return {"id": user.id, "reset_token": token, "reset_expires_at": expires_at}

    made = run_in_transaction(data, work)
    if as_json:
        print_json(made)
    else:
        err.print("For POST /auth/v1/password:reset, once, within an hour:")
        out.print(str(made["reset_token"]), markup=False)


@app.command("disable")
def disable(
    person: Person, data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False
) -> None:
    """Close an account: the person is signed out and cannot sign in."""

    async def work(session: AsyncSession, user: User, _secrets: SecretFiles) -> None:
        from weft.tenancy import users

        await users.disable_user(session, user)
        await _record(session, user, "user.disabled", {})

    _change(data, person, work, "Closed the account of {email}.", as_json)


@app.command("enable")
def enable(
    person: Person, data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False
) -> None:
    """Open a closed account again."""

    async def work(session: AsyncSession, user: User, _secrets: SecretFiles) -> None:
        user.disabled_at = None
        await _record(session, user, "user.enabled", {})

    _change(data, person, work, "Opened the account of {email}.", as_json)


@app.command("sign-out")
def sign_out(
    person: Person, data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False
) -> None:
    """End all of a person's sessions."""

    async def work(session: AsyncSession, user: User, _secrets: SecretFiles) -> None:
        from weft.tenancy.session_repository import SessionRepository

        await SessionRepository(session).close_all_of(user.id)
        await _record(session, user, "user.signed_out", {})

    _change(data, person, work, "Signed {email} out everywhere.", as_json)


def _change(
    data: Path,
    person: str,
    work: Callable[[AsyncSession, User, SecretFiles], Awaitable[None]],
    done: str,
    as_json: bool,
) -> None:
    """Do `work` on the account and say that it is done."""
    from weft.cli.control import run_in_transaction
    from weft.tenancy import users
    from weft.tenancy.user_schemas import UserObject

    async def change(session: AsyncSession, secrets: SecretFiles) -> dict[str, object]:
        user = await users.get_user(session, person)
        await work(session, user, secrets)
        return UserObject.of(user).model_dump()

    user = run_in_transaction(data, change)
    if as_json:
        print_json(user)
    else:
        out.print(done.format(email=user["email"]), markup=False)


async def _record(
    session: AsyncSession, user: User, event_type: str, changes: dict[str, object]
) -> None:
    from weft.audit import SYSTEM, Target, record

    await record(session, SYSTEM, event_type, Target(user.id), changes)


def _read_password() -> str:
    """Typed twice at a terminal; else the first line of stdin."""
    if sys.stdin.isatty():
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    return sys.stdin.readline().rstrip("\r\n")


def _hash(password: str, about: tuple[str, ...]) -> str:
    """The hash of a password that may be chosen; else says why it may not."""
    from weft.errors import InvalidRequestError

    try:
        return asyncio.run(_hash_async(password, about))
    except InvalidRequestError as error:
        raise fail(error.message) from error


async def _hash_async(password: str, about: tuple[str, ...]) -> str:
    from weft.tenancy.passwords import PasswordHasher, check_new_password

    check_new_password(password, about)
    return await PasswordHasher().hash(password)
