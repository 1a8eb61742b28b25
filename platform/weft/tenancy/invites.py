"""Invites to a tenant: a link that makes a member of whoever holds it, once.

The platform sends no mail; who invites is given the link and passes it on. So a link proves no
address: an account that is there already must be shown its password as well.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import cast

from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import Actor, Target, record
from weft.db.database import Database
from weft.db.ids import create_id, now
from weft.db.scope import Owner, TenantOwner
from weft.errors import ConflictError, InvalidRequestError, NotFoundError, QuotaExceededError
from weft.tenancy.accounts import Accounts
from weft.tenancy.acting import person_actor
from weft.tenancy.emails import check_person_name, normalise_email
from weft.tenancy.members import add_member, check_role
from weft.tenancy.one_time_tokens import create_token, hash_token
from weft.tenancy.passwords import check_new_password
from weft.tenancy.principal import Client, Permission
from weft.tenancy.roles import Role
from weft.tenancy.user_models import Invite, User
from weft.tenancy.user_repository import UserRepository
from weft.tenancy.users import create_user

INVITE_TTL_S = 7 * 24 * 3600
MAX_OPEN_INVITES = 1000


class InviteRefusedError(InvalidRequestError):
    """The link was used, taken back, has expired, or never was one: the same answer for all."""

    code = "invalid_token"

    def __init__(self) -> None:
        super().__init__("This invite is not valid any more; ask for a new one.", param="token")


@dataclass(frozen=True, slots=True)
class NewInvite:
    """An invite just made. `token` is shown once and stored nowhere."""

    row: Invite
    token: str = field(repr=False)


async def create_invite(
    session: AsyncSession,
    owner: Owner,
    allowed: Collection[Permission],
    actor: Actor,
    *,
    email: str,
    role: str,
) -> NewInvite:
    """Invite an address; the answer does not tell whether it has an account on the platform."""
    email = normalise_email(email)
    known_role = check_role(role, allowed)
    repository = UserRepository(session)
    user = await repository.find_user_by_email(email)
    if user is not None and await repository.find_membership(user.id, owner) is not None:
        raise ConflictError(f"'{email}' is a member already.", param="email")
    if await repository.find_open_invite(email, owner, now()) is not None:
        raise ConflictError(f"'{email}' is invited already; delete that invite.", param="email")
    if await repository.count_open_invites(owner, now()) >= MAX_OPEN_INVITES:
        raise QuotaExceededError(f"{MAX_OPEN_INVITES} invites are open; delete some.")
    token = create_token("invite")
    row = Invite(
        id=create_id("invite"),
        tenant_id=owner.tenant_id,
        email=email,
        role=known_role,
        token_hash=hash_token(token),
        created_at=now(),
        expires_at=now() + INVITE_TTL_S,
        accepted_at=None,
    )
    repository.add(row)
    await repository.flush()
    await record(
        session,
        actor,
        "invite.sent",
        Target(row.id, owner.tenant_id),
        {"email": email, "role": role},
    )
    return NewInvite(row, token)


async def get_invite(session: AsyncSession, owner: Owner, invite_id: str) -> Invite:
    """NotFoundError for none, and for those of other tenants."""
    row = await UserRepository(session).find_invite(invite_id, owner)
    if row is None:
        raise NotFoundError(f"No invite '{invite_id}' exists.")
    return row


async def delete_invite(
    session: AsyncSession, owner: Owner, actor: Actor, invite_id: str
) -> Invite:
    """Take an invite back. One that was accepted stays: members are removed as members."""
    row = await get_invite(session, owner, invite_id)
    if row.accepted_at is not None:
        raise ConflictError("This invite was accepted; remove the user instead.")
    repository = UserRepository(session)
    await repository.delete(row)
    await repository.flush()
    target = Target(row.id, owner.tenant_id)
    await record(session, actor, "invite.deleted", target, {"email": row.email})
    return row


@dataclass(frozen=True, slots=True)
class Invites:
    """Accepting invites. Makes its own transactions: a password is hashed between them."""

    database: Database
    accounts: Accounts

    async def accept(self, token: str, name: str, password: str, client: Client) -> str:
        """Make the holder of the link a member; gives the tenant's id. A new account gets `name`
        and `password`; of one that is there, `password` must be the right one."""
        name = check_person_name(name)
        async with self.database.reading() as session:
            email = (await self._open(session, token)).email
            user = await UserRepository(session).find_user_by_email(email)
        password_hash = None
        if user is None:
            check_new_password(password, (email, name))
            password_hash = await self.accounts.hasher.hash(password)
        else:
            user = await self.accounts.check_password(email, password, client)
        async with self.database.writing() as session:
            invite = await self._open(session, token)
            if user is None:
                user = await create_user(session, email, name, password_hash=password_hash)
            await self._join(session, invite, user, client)
            return invite.tenant_id

    async def _open(self, session: AsyncSession, token: str) -> Invite:
        found = await UserRepository(session).find_invite_by_token(hash_token(token))
        if found is None or found[0].accepted_at is not None or now() >= found[0].expires_at:
            raise InviteRefusedError
        return found[0]

    async def _join(
        self, session: AsyncSession, invite: Invite, user: User, client: Client
    ) -> None:
        owner = TenantOwner(invite.tenant_id)
        if await UserRepository(session).find_membership(user.id, owner) is not None:
            raise ConflictError("You are a member already.")
        invite.accepted_at = now()
        await add_member(session, user, invite.tenant_id, cast(Role, invite.role))
        await record(
            session,
            person_actor(user.id, invite.tenant_id, client),
            "invite.accepted",
            Target(invite.id, invite.tenant_id),
            {"user": user.id, "email": user.email, "role": invite.role},
        )
