"""The operator's routes for people: accounts, resets, and a tenant's first administrator."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from weft.audit import Target, record
from weft.db.dependencies import PageDep, ReadSession, WriteSession
from weft.db.lists import ListOf
from weft.db.scope import TenantOwner
from weft.idempotency.routes import KeyedRoute
from weft.tenancy import invites, service, users
from weft.tenancy.acting import actor_of
from weft.tenancy.auth import require_operator
from weft.tenancy.dependencies import changes_identities
from weft.tenancy.principal import TENANT_PERMISSIONS, Operator
from weft.tenancy.session_repository import SessionRepository
from weft.tenancy.user_repository import UserRepository
from weft.tenancy.user_schemas import (
    InviteCreate,
    NewInviteObject,
    UserCreate,
    UserObject,
    UserWithReset,
)

router = APIRouter(prefix="/admin/v1", tags=["people"], route_class=KeyedRoute)
Reader = Annotated[Operator, Depends(require_operator("platform:read"))]
Writer = Annotated[Operator, Depends(require_operator("platform:write"))]
TenantWriter = Annotated[Operator, Depends(require_operator("tenants:write"))]


@router.post("/users", status_code=201)
async def create_user(operator: Writer, body: UserCreate, session: WriteSession) -> UserWithReset:
    """An account, and the token by which its owner sets a password, shown this once."""
    user = await users.create_user(
        session, body.email, body.name, password_hash=None, is_operator=body.is_operator
    )
    token, expires_at = await users.create_reset(session, user)
    changes = {"email": user.email, "is_operator": user.is_operator}
    await record(session, actor_of(operator), "user.added", Target(user.id), changes)
    return UserWithReset.of_reset(user, token, expires_at)


@router.get("/users")
async def list_users(_operator: Reader, session: ReadSession, page: PageDep) -> ListOf[UserObject]:
    found = await UserRepository(session).list_users(page)
    return ListOf[UserObject].of(found, UserObject.of)


@router.get("/users/{user}")
async def get_user(_operator: Reader, user: str, session: ReadSession) -> UserObject:
    """By id or address."""
    return UserObject.of(await users.get_user(session, user))


@router.post("/users/{user}:reset_password")
async def reset_password(operator: Writer, user: str, session: WriteSession) -> UserWithReset:
    """A token that sets the account's password once. The old password holds until then."""
    row = await users.get_user(session, user)
    token, expires_at = await users.create_reset(session, row)
    await record(session, actor_of(operator), "user.reset_created", Target(row.id), {})
    return UserWithReset.of_reset(row, token, expires_at)


@router.post("/users/{user}:disable", dependencies=[changes_identities])
async def disable_user(operator: Writer, user: str, session: WriteSession) -> UserObject:
    """The person is signed out everywhere and cannot sign in."""
    row = await users.get_user(session, user)
    await users.disable_user(session, row)
    await record(session, actor_of(operator), "user.disabled", Target(row.id), {})
    return UserObject.of(row)


@router.post("/users/{user}:enable", dependencies=[changes_identities])
async def enable_user(operator: Writer, user: str, session: WriteSession) -> UserObject:
    """Undo `:disable`."""
    row = await users.get_user(session, user)
    row.disabled_at = None
    await record(session, actor_of(operator), "user.enabled", Target(row.id), {})
    return UserObject.of(row)


@router.post("/users/{user}:sign_out")
async def sign_out(operator: Writer, user: str, session: WriteSession) -> UserObject:
    """End all of a person's sessions."""
    row = await users.get_user(session, user)
    await SessionRepository(session).close_all_of(row.id)
    await record(session, actor_of(operator), "user.signed_out", Target(row.id), {})
    return UserObject.of(row)


@router.post("/tenants/{tenant}/invites", status_code=201)
async def invite(
    operator: TenantWriter, tenant: str, body: InviteCreate, session: WriteSession
) -> NewInviteObject:
    """Invite somebody to a tenant: how it gets its first administrator."""
    owner = TenantOwner((await service.get_tenant(session, tenant)).id)
    made = await invites.create_invite(
        session,
        owner,
        TENANT_PERMISSIONS,
        actor_of(operator),
        email=body.email,
        role=body.role,
    )
    return NewInviteObject.of_new(made)
