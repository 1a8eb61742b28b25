"""Local accounts: signing in with a password, changing it, and having it reset.

Hashing takes tens of milliseconds, so it is done between transactions, never inside one.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import Target, record
from weft.db.database import Database
from weft.db.ids import now
from weft.errors import InvalidRequestError, PermissionDeniedError
from weft.tenancy.acting import person_actor
from weft.tenancy.attempts import AttemptLimiter
from weft.tenancy.emails import normalise_email
from weft.tenancy.one_time_tokens import hash_token
from weft.tenancy.passwords import PasswordHasher, check_new_password
from weft.tenancy.principal import Client
from weft.tenancy.session_repository import SessionRepository
from weft.tenancy.sessions import (
    NewSession,
    SessionPolicy,
    SignedIn,
    SignInFailedError,
    open_session,
    renew_session,
)
from weft.tenancy.user_models import User
from weft.tenancy.user_repository import UserRepository


class ResetRefusedError(InvalidRequestError):
    """The link was used, has expired, or never was one: the same answer for all."""

    code = "invalid_token"

    def __init__(self) -> None:
        super().__init__("This link is not valid any more; ask for a new one.", param="token")


@dataclass(frozen=True, slots=True)
class Accounts:
    """What people do with their passwords. Each method makes its own transactions."""

    database: Database
    hasher: PasswordHasher
    limiter: AttemptLimiter
    policy: SessionPolicy

    async def check_password(self, email: str, password: str, client: Client) -> User:
        """The person of this address and password, or SignInFailedError: the same answer, after
        the same work, whether or not there is an account. RateLimitError after failures."""
        email, target = _named(email)
        address = client.address or ""
        async with self.database.reading() as session:
            await self.limiter.check(session, email, address)
            user = await UserRepository(session).find_user_by_email(email)
        async with self.database.writing() as session:
            await self.limiter.begin(session, email, address)
        is_open = user is not None and user.disabled_at is None
        stored = user.password_hash if user is not None and is_open else None
        verified = await self.hasher.verify(password, stored)
        async with self.database.writing() as session:
            if user is None or not verified.is_right:
                # who it was is what the attempt says, and nobody knows whether it is true
                actor = person_actor("unknown", None, client)
                await record(session, actor, "login.failed", Target(target), {"method": "password"})
            else:
                await self.limiter.succeed(session, email, address)
                user = await UserRepository(session).find_user(user.id)
                if user is not None and verified.new_hash and user.password_hash == stored:
                    user.password_hash = verified.new_hash
        # the account may have been closed, or given another password, while this one was hashed
        if user is None or not verified.is_right or user.disabled_at is not None:
            raise SignInFailedError
        if user.password_hash not in (stored, verified.new_hash):
            raise SignInFailedError
        return user

    async def sign_in(
        self,
        email: str,
        password: str,
        client: Client,
        *,
        tenant: str | None,
        replaced_hash: str | None = None,
    ) -> NewSession:
        """Sign in with a password, acting for `tenant` (id or name) if it is named. The session
        that the browser had, `replaced_hash`, is closed."""
        user = await self.check_password(email, password, client)
        async with self.database.writing() as session:
            if replaced_hash is not None:
                await SessionRepository(session).close(replaced_hash)
            tenant_id = await choose_tenant(session, user, tenant)
            made = await open_session(session, user, client, self.policy, tenant_id=tenant_id)
            await record(
                session,
                person_actor(user.id, tenant_id, client),
                "login.succeeded",
                Target(user.id, tenant_id),
                {"method": "password", "session": made.row.id},
            )
        return made

    async def change_password(
        self, who: SignedIn, current: str, new: str, client: Client
    ) -> NewSession:
        """Set a new password. Every other session of the person is closed, and this one gets a new
        id: whoever knew the old password is out."""
        check_new_password(new, (who.email, who.name))
        user = await self.check_password(who.email, current, client)
        new_hash = await self.hasher.hash(new)
        async with self.database.writing() as session:
            repository = UserRepository(session)
            found = await repository.find_user(user.id)
            if found is None or found.password_hash != user.password_hash:
                raise SignInFailedError
            found.password_hash = new_hash
            await repository.delete_resets(user.id)
            await SessionRepository(session).close_all_of(user.id)
            made = await renew_session(session, who, client, tenant_id=who.tenant_id)
            actor = person_actor(user.id, who.tenant_id, client)
            await record(session, actor, "user.password_changed", Target(user.id), {})
        return made

    async def reset_password(self, token: str, new: str, client: Client) -> User:
        """Set the password by a one-time token; ResetRefusedError where it is none. All sessions
        of the person are closed."""
        async with self.database.reading() as session:
            user = await _user_of_reset(UserRepository(session), token)
        check_new_password(new, (user.email, user.name))
        new_hash = await self.hasher.hash(new)
        async with self.database.writing() as session:
            repository = UserRepository(session)
            user = await _user_of_reset(repository, token)
            user.password_hash = new_hash
            await repository.delete_resets(user.id)
            await SessionRepository(session).close_all_of(user.id)
            await self.limiter.forgive(session, user.email)
            actor = person_actor(user.id, None, client)
            await record(session, actor, "user.password_reset", Target(user.id), {})
        return user


def _named(email: str) -> tuple[str, str]:
    """(the address as it is looked up and counted, as the audit trail may have it)."""
    try:
        email = normalise_email(email)
    except InvalidRequestError:
        # nobody's, and counted like any other; it may well be a password, so it is not kept
        return "", "unknown"
    return email, email


async def _user_of_reset(repository: UserRepository, token: str) -> User:
    found = await repository.find_reset(hash_token(token))
    if found is None or now() >= found[0].expires_at or found[1].disabled_at is not None:
        raise ResetRefusedError
    return found[1]


async def choose_tenant(session: AsyncSession, user: User, tenant: str | None) -> str | None:
    """What a sign-in with a password acts for: the named tenant, else the platform for an
    operator, else the only tenant there is, else nothing yet. PermissionDeniedError where the
    person is no member of the named one."""
    local = [
        (membership, row)
        for membership, row in await UserRepository(session).list_tenants_of(user.id)
        if membership.is_open_to(None)
    ]
    if tenant is not None:
        for _membership, row in local:
            if tenant in (row.id, row.name):
                return row.id
        raise PermissionDeniedError(f"You cannot sign in to '{tenant}' with a password.")
    if user.is_operator or len(local) != 1:
        return None
    return local[0][1].id
