"""Queries on users, memberships and invites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.paging import Page, PageRequest
from weft.db.scope import Owner, scoped, unscoped
from weft.tenancy.models import Tenant
from weft.tenancy.user_models import Invite, Membership, PasswordReset, User

_PEOPLE = "people belong to the platform, only their memberships to tenants"
_TOKEN = "a one-time token is what tells whose it is"


class UserRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, *rows: User | Membership | Invite | PasswordReset) -> None:
        self._session.add_all(rows)

    async def delete(self, row: Membership | Invite | PasswordReset) -> None:
        await self._session.delete(row)

    async def flush(self) -> None:
        await self._session.flush()

    async def find_user(self, user_id: str) -> User | None:
        return await self._session.scalar(unscoped(select(User).where(User.id == user_id), _PEOPLE))

    async def find_user_by_email(self, email: str) -> User | None:
        """`email` is normalised."""
        return await self._session.scalar(
            unscoped(select(User).where(User.email == email), _PEOPLE)
        )

    async def list_users(self, page: PageRequest) -> Page[User]:
        statement = unscoped(page.apply(select(User), User.id), _PEOPLE)
        return Page.of((await self._session.scalars(statement)).all(), page)

    async def has_operator(self) -> bool:
        statement = select(func.count(User.id)).where(User.is_operator, User.disabled_at.is_(None))
        return bool(await self._session.scalar(unscoped(statement, _PEOPLE)))

    async def find_membership(self, user_id: str, owner: Owner) -> Membership | None:
        statement = select(Membership).where(Membership.user_id == user_id)
        return await self._session.scalar(scoped(statement, owner))

    async def find_member(self, user_id: str, owner: Owner) -> Row[Membership, User] | None:
        statement = (
            select(Membership, User)
            .join(User, User.id == Membership.user_id)
            .where(Membership.user_id == user_id)
        )
        return (await self._session.execute(scoped(statement, owner))).one_or_none()

    async def list_members(
        self, owner: Owner, page: PageRequest, emails: Sequence[str] = ()
    ) -> Page[tuple[Membership, User]]:
        statement: Any = select(Membership, User).join(User, User.id == Membership.user_id)
        if emails:
            statement = statement.where(User.email.in_(emails))
        rows = await self._session.execute(scoped(page.apply(statement, User.id), owner))
        return Page.of([(membership, user) for membership, user in rows], page)

    async def lock_admins(self, owner: Owner) -> Sequence[Membership]:
        """The memberships of the tenant's administrators who can sign in, held until the end of
        the transaction: two of them who leave at once leave one after the other."""
        statement = (
            select(Membership)
            .join(User, User.id == Membership.user_id)
            .where(Membership.role == "tenant-admin", User.disabled_at.is_(None))
            .order_by(Membership.id)
            .with_for_update(of=Membership)
        )
        return (await self._session.scalars(scoped(statement, owner))).all()

    async def list_tenants_of(self, user_id: str) -> Sequence[Row[Membership, Tenant]]:
        """A person's memberships in tenants that live, the oldest first."""
        statement = (
            select(Membership, Tenant)
            .join(Tenant, Tenant.id == Membership.tenant_id)
            .where(Membership.user_id == user_id, Tenant.deleted_at.is_(None))
            .order_by(Membership.created_at, Membership.id)
        )
        reason = "a person's own memberships are in several tenants"
        return (await self._session.execute(unscoped(statement, reason))).all()

    async def find_invite(self, invite_id: str, owner: Owner) -> Invite | None:
        statement = select(Invite).where(Invite.id == invite_id)
        return await self._session.scalar(scoped(statement, owner))

    async def find_invite_by_token(self, token_hash: str) -> Row[Invite, Tenant] | None:
        """With its tenant, which lives."""
        statement = (
            select(Invite, Tenant)
            .join(Tenant, Tenant.id == Invite.tenant_id)
            .where(Invite.token_hash == token_hash, Tenant.deleted_at.is_(None))
            .with_for_update(of=Invite)
        )
        return (await self._session.execute(unscoped(statement, _TOKEN))).one_or_none()

    async def find_open_invite(self, email: str, owner: Owner, time_s: int) -> Invite | None:
        """The newest invite of this address that is neither accepted nor expired."""
        statement = (
            select(Invite)
            .where(Invite.email == email, Invite.accepted_at.is_(None), Invite.expires_at > time_s)
            .order_by(Invite.id.desc())
            .limit(1)
        )
        return await self._session.scalar(scoped(statement, owner))

    async def count_open_invites(self, owner: Owner, time_s: int) -> int:
        statement = select(func.count(Invite.id)).where(
            Invite.accepted_at.is_(None), Invite.expires_at > time_s
        )
        return await self._session.scalar(scoped(statement, owner)) or 0

    async def list_invites(self, owner: Owner, page: PageRequest) -> Page[Invite]:
        statement = scoped(page.apply(select(Invite), Invite.id), owner)
        return Page.of((await self._session.scalars(statement)).all(), page)

    async def find_reset(self, token_hash: str) -> Row[PasswordReset, User] | None:
        statement = (
            select(PasswordReset, User)
            .join(User, User.id == PasswordReset.user_id)
            .where(PasswordReset.token_hash == token_hash)
            .with_for_update(of=PasswordReset)
        )
        return (await self._session.execute(unscoped(statement, _TOKEN))).one_or_none()

    async def delete_resets(self, user_id: str) -> None:
        statement = delete(PasswordReset).where(PasswordReset.user_id == user_id)
        await self._session.execute(unscoped(statement, _PEOPLE))

    async def delete_expired(self, time_s: int) -> None:
        """Resets that nobody can use any more. Invites stay on record."""
        statement = delete(PasswordReset).where(PasswordReset.expires_at <= time_s)
        await self._session.execute(unscoped(statement, _PEOPLE))
