"""Queries on sessions and on attempts to sign in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import and_, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.scope import unscoped
from weft.tenancy.models import Tenant
from weft.tenancy.user_models import Membership, SignInAttempts, User, UserSession

_SESSIONS = "a session belongs to a person, whose secret or id selects it"
_ATTEMPTS = "attempts belong to nobody: who signs in is not known yet"


@dataclass(frozen=True, slots=True)
class FoundSession:
    """A session with all that decides what it may do."""

    row: UserSession
    user: User
    membership: Membership | None
    tenant: Tenant | None


class SessionRepository:
    """Rows of one session of the database."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, row: UserSession | SignInAttempts) -> None:
        self._session.add(row)

    async def flush(self) -> None:
        await self._session.flush()

    async def find(self, secret_hash: str) -> FoundSession | None:
        """The session of this secret, with its person as they are now."""
        in_tenant = and_(
            Membership.user_id == UserSession.user_id,
            Membership.tenant_id == UserSession.tenant_id,
        )
        statement = (
            select(UserSession, User, Membership, Tenant)
            .join(User, User.id == UserSession.user_id)
            .outerjoin(Membership, in_tenant)
            .outerjoin(Tenant, Tenant.id == UserSession.tenant_id)
            .where(UserSession.secret_hash == secret_hash)
        )
        found = (await self._session.execute(unscoped(statement, _SESSIONS))).one_or_none()
        return None if found is None else FoundSession(*found)

    async def list_of(self, user_id: str) -> Sequence[UserSession]:
        statement = (
            select(UserSession).where(UserSession.user_id == user_id).order_by(UserSession.id)
        )
        return (await self._session.scalars(unscoped(statement, _SESSIONS))).all()

    async def close(self, secret_hash: str) -> None:
        statement = delete(UserSession).where(UserSession.secret_hash == secret_hash)
        await self._session.execute(unscoped(statement, _SESSIONS))

    async def close_one_of(
        self, user_id: str, provider_id: str | None, session_id: str
    ) -> UserSession | None:
        """The person's session of this id, which is closed now; None where there is none that came
        by this provider (None: by a password)."""
        statement = select(UserSession).where(
            UserSession.user_id == user_id,
            UserSession.provider_id.is_not_distinct_from(provider_id),
            UserSession.id == session_id,
        )
        row = await self._session.scalar(unscoped(statement, _SESSIONS))
        if row is not None:
            await self._session.delete(row)
        return row

    async def close_all_of(self, user_id: str, *, keep: str | None = None) -> None:
        """All of a person's sessions but that of the hash `keep`."""
        statement = delete(UserSession).where(UserSession.user_id == user_id)
        if keep is not None:
            statement = statement.where(UserSession.secret_hash != keep)
        await self._session.execute(unscoped(statement, _SESSIONS))

    async def close_all_in(self, user_id: str, tenant_id: str) -> None:
        """A person's sessions that act for this tenant."""
        statement = delete(UserSession).where(
            UserSession.user_id == user_id, UserSession.tenant_id == tenant_id
        )
        await self._session.execute(unscoped(statement, _SESSIONS))

    async def close_all_by(self, provider_id: str, domain_tenant_id: str | None = None) -> None:
        """Sessions that a provider vouched for; with a tenant, those that act for it."""
        statement = delete(UserSession).where(UserSession.provider_id == provider_id)
        if domain_tenant_id is not None:
            statement = statement.where(UserSession.tenant_id == domain_tenant_id)
        await self._session.execute(unscoped(statement, _SESSIONS))

    async def touch(self, seen: Mapping[str, int]) -> None:
        """Remember when sessions were last used, by the hashes of their secrets."""
        for secret_hash in sorted(seen):  # in one order, or two workers wait for each other
            at = seen[secret_hash]
            statement = (
                update(UserSession)
                .where(UserSession.secret_hash == secret_hash, UserSession.last_seen_at < at)
                .values(last_seen_at=at)
            )
            await self._session.execute(unscoped(statement, _SESSIONS))

    async def delete_expired(self, time_s: int, idle_since_s: int) -> None:
        """Sessions and counts of attempts that mean nothing any more."""
        is_over = or_(UserSession.expires_at <= time_s, UserSession.last_seen_at <= idle_since_s)
        await self._session.execute(unscoped(delete(UserSession).where(is_over), _SESSIONS))
        forgotten = delete(SignInAttempts).where(SignInAttempts.expires_at <= time_s)
        await self._session.execute(unscoped(forgotten, _ATTEMPTS))

    async def lock_attempts(self, keys: Sequence[str]) -> Sequence[SignInAttempts]:
        """The rows of these keys, held until the end of the transaction, in the order of keys."""
        statement = (
            select(SignInAttempts)
            .where(SignInAttempts.key.in_(keys))
            .order_by(SignInAttempts.key)
            .with_for_update()
        )
        return (await self._session.scalars(unscoped(statement, _ATTEMPTS))).all()
