"""A tenant's members and invites, in OpenAI's shapes (`/v1/organization/users` and `/invites`)."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from weft.audit import Target, record
from weft.db.dependencies import PageDep, ReadSession, WriteSession
from weft.db.lists import ListOf
from weft.idempotency.routes import KeyedRoute
from weft.tenancy import invites, members
from weft.tenancy.acting import actor_of
from weft.tenancy.auth import require_admin
from weft.tenancy.dependencies import changes_identities
from weft.tenancy.emails import MAX_EMAIL_CHARS
from weft.tenancy.principal import TenantAdmin
from weft.tenancy.schemas import Deleted
from weft.tenancy.user_repository import UserRepository
from weft.tenancy.user_schemas import (
    InviteCreate,
    InviteObject,
    MemberObject,
    NewInviteObject,
    RoleChange,
)

router = APIRouter(prefix="/v1/organization", tags=["members"], route_class=KeyedRoute)
Reader = Annotated[TenantAdmin, Depends(require_admin("members:read"))]
Writer = Annotated[TenantAdmin, Depends(require_admin("members:write"))]
Email = Annotated[str, Query(max_length=MAX_EMAIL_CHARS)]


@router.get("/users")
async def list_users(
    admin: Reader,
    session: ReadSession,
    page: PageDep,
    emails: Annotated[list[Email] | None, Query(alias="emails[]", max_length=100)] = None,
) -> ListOf[MemberObject]:
    wanted = [email.strip().lower() for email in emails or ()]
    found = await UserRepository(session).list_members(admin, page, wanted)
    return ListOf[MemberObject].of(found, lambda row: MemberObject.of(*row))


@router.get("/users/{user_id}")
async def get_user(admin: Reader, user_id: str, session: ReadSession) -> MemberObject:
    return MemberObject.of(*await members.get_member(session, admin, user_id))


@router.post("/users/{user_id}", dependencies=[changes_identities])
async def change_role(
    admin: Writer, user_id: str, body: RoleChange, session: WriteSession
) -> MemberObject:
    """Give a member another role. Their sessions for this tenant end."""
    membership, user = await members.set_role(session, admin, admin.permissions, user_id, body.role)
    target = Target(user_id, admin.tenant_id)
    await record(session, actor_of(admin), "user.updated", target, {"role": body.role})
    return MemberObject.of(membership, user)


@router.delete("/users/{user_id}", dependencies=[changes_identities])
async def remove_user(admin: Writer, user_id: str, session: WriteSession) -> Deleted:
    """Take a member out of the tenant. Their account stays theirs."""
    membership, user = await members.remove_member(session, admin, admin.permissions, user_id)
    target = Target(user_id, admin.tenant_id)
    changes = {"email": user.email, "role": membership.role}
    await record(session, actor_of(admin), "user.deleted", target, changes)
    return Deleted(id=user_id, object="organization.user.deleted")


@router.post("/invites")
async def create_invite(
    admin: Writer, body: InviteCreate, session: WriteSession
) -> NewInviteObject:
    """Invite an address. `token` is shown now and never again: pass it on to them."""
    made = await invites.create_invite(
        session,
        admin,
        admin.permissions,
        actor_of(admin),
        email=body.email,
        role=body.role,
    )
    return NewInviteObject.of_new(made)


@router.get("/invites")
async def list_invites(admin: Reader, session: ReadSession, page: PageDep) -> ListOf[InviteObject]:
    found = await UserRepository(session).list_invites(admin, page)
    return ListOf[InviteObject].of(found, InviteObject.of)


@router.get("/invites/{invite_id}")
async def get_invite(admin: Reader, invite_id: str, session: ReadSession) -> InviteObject:
    return InviteObject.of(await invites.get_invite(session, admin, invite_id))


@router.delete("/invites/{invite_id}")
async def delete_invite(admin: Writer, invite_id: str, session: WriteSession) -> Deleted:
    """Take an invite back."""
    row = await invites.delete_invite(session, admin, actor_of(admin), invite_id)
    return Deleted(id=row.id, object="organization.invite.deleted")
