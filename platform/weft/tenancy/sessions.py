"""Sessions of people: made at sign-in, looked up at every request, closed by the row's deletion.

What a person may do is read anew with every request, so that a role, a membership or an account
that ends takes the session with it at once. Knows no HTTP.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import cast

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.ids import create_id, now
from weft.errors import TenantSuspendedError, WeftError
from weft.tenancy.principal import Client, Identity, Operator, TenantAdmin
from weft.tenancy.roles import PERMISSIONS, Role
from weft.tenancy.session_repository import FoundSession, SessionRepository
from weft.tenancy.user_models import User, UserSession

# a new sign-in closes the oldest: nobody is signed in at so many places
MAX_SESSIONS_PER_USER = 50
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")  # 32 bytes in base64url
_MAX_USER_AGENT_CHARS = 256


class SignInFailedError(WeftError):
    """Wrong password, no account, a closed account: one answer for all."""

    status_code = 401
    type = "invalid_request_error"
    code = "invalid_credentials"

    def __init__(self) -> None:
        super().__init__("The address or the password is wrong.")


class SignedOutError(WeftError):
    """No session, or one that has ended."""

    status_code = 401
    type = "invalid_request_error"
    code = "signed_out"

    def __init__(self) -> None:
        super().__init__("You are not signed in, or the session has ended.")


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """A session ends `idle_s` after its last request, and `max_s` after the sign-in."""

    idle_s: int
    max_s: int


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A person with a live session, and what they act for: a tenant in a role, the platform as
    "operator", or nothing (`role` None) where they have several tenants and chose none yet."""

    session_id: str
    secret_hash: str = field(repr=False)
    user_id: str
    email: str
    name: str
    is_operator: bool
    tenant_id: str | None
    is_suspended: bool
    role: Role | None
    provider_id: str | None
    created_at: int
    last_seen_at: int
    expires_at: int

    def identity(self, client: Client) -> Identity | None:
        """Who acts; None for a person who acts for nothing yet. TenantSuspendedError."""
        if self.is_suspended:
            raise TenantSuspendedError
        if self.role is None:
            return None
        permissions = PERMISSIONS[self.role]
        if self.tenant_id is None:
            return Operator(self.user_id, permissions, "session", client)
        return TenantAdmin(self.tenant_id, permissions, "session", self.user_id, client)


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session just made. `secret` goes into the cookie and is stored nowhere."""

    row: UserSession
    secret: str = field(repr=False)


def hash_session_secret(secret: str) -> str:
    """SHA-256 in hex: 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_session_secret(text: str) -> bool:
    """Whether a cookie's value could be one: junk is not looked up."""
    return _SECRET.fullmatch(text) is not None


async def open_session(
    session: AsyncSession,
    user: User,
    client: Client,
    policy: SessionPolicy,
    *,
    tenant_id: str | None,
    provider_id: str | None = None,
) -> NewSession:
    """Sign a person in. The id is always new: one that was there before is never taken over."""
    repository = SessionRepository(session)
    others = await repository.list_of(user.id)
    for row in others[: max(0, len(others) - MAX_SESSIONS_PER_USER + 1)]:
        await repository.close(row.secret_hash)
    return await _add(
        repository,
        user.id,
        client,
        tenant_id=tenant_id,
        provider_id=provider_id,
        expires_at=now() + policy.max_s,
    )


async def renew_session(
    session: AsyncSession, who: SignedIn, client: Client, *, tenant_id: str | None
) -> NewSession:
    """The same sign-in under a new id, acting for `tenant_id`: for every change of what it may do.
    It ends no later for that."""
    repository = SessionRepository(session)
    await repository.close(who.secret_hash)
    return await _add(
        repository,
        who.user_id,
        client,
        tenant_id=tenant_id,
        provider_id=who.provider_id,
        expires_at=who.expires_at,
    )


async def _add(
    repository: SessionRepository,
    user_id: str,
    client: Client,
    *,
    tenant_id: str | None,
    provider_id: str | None,
    expires_at: int,
) -> NewSession:
    secret = secrets.token_urlsafe(32)
    row = UserSession(
        secret_hash=hash_session_secret(secret),
        id=create_id("sess"),
        user_id=user_id,
        tenant_id=tenant_id,
        provider_id=provider_id,
        ip_address=(client.address or "")[:64],
        user_agent=(client.user_agent or "")[:_MAX_USER_AGENT_CHARS],
        created_at=now(),
        last_seen_at=now(),
        expires_at=expires_at,
    )
    repository.add(row)
    await repository.flush()
    return NewSession(row, secret)


async def find_signed_in(
    session: AsyncSession, secret: str, policy: SessionPolicy
) -> SignedIn | None:
    """The person of this cookie's value; None where the session has ended, for whatever reason."""
    if not is_session_secret(secret):
        return None
    found = await SessionRepository(session).find(hash_session_secret(secret))
    if found is None or not _is_alive(found, policy):
        return None
    row, user = found.row, found.user
    return SignedIn(
        session_id=row.id,
        secret_hash=row.secret_hash,
        user_id=user.id,
        email=user.email,
        name=user.name,
        is_operator=user.is_operator,
        tenant_id=row.tenant_id,
        is_suspended=found.tenant is not None and found.tenant.suspended_at is not None,
        role=_role(found),
        provider_id=row.provider_id,
        created_at=row.created_at,
        last_seen_at=row.last_seen_at,
        expires_at=row.expires_at,
    )


def _is_alive(found: FoundSession, policy: SessionPolicy) -> bool:
    row, time_s = found.row, now()
    if time_s >= row.expires_at or time_s >= row.last_seen_at + policy.idle_s:
        return False
    if found.user.disabled_at is not None:
        return False
    if row.tenant_id is None:
        return True
    tenant, membership = found.tenant, found.membership
    if tenant is None or tenant.deleted_at is not None or membership is None:
        return False
    return membership.is_open_to(row.provider_id)


def _role(found: FoundSession) -> Role | None:
    if found.row.tenant_id is not None:
        assert found.membership is not None, "the session would not be alive"
        return cast(Role, found.membership.role)
    # who vouches for a company's people does not decide on who runs the platform
    if found.user.is_operator and found.row.provider_id is None:
        return "operator"
    return None
