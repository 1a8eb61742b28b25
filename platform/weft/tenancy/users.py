"""People's accounts: made, found, closed, and given a way to set a password.

Each function works in the caller's transaction.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.ids import create_id, now
from weft.errors import ConflictError, NotFoundError
from weft.tenancy.emails import check_person_name, normalise_email
from weft.tenancy.one_time_tokens import create_token, hash_token
from weft.tenancy.session_repository import SessionRepository
from weft.tenancy.user_models import PasswordReset, User
from weft.tenancy.user_repository import UserRepository

RESET_TTL_S = 3600


async def create_user(
    session: AsyncSession,
    email: str,
    name: str,
    *,
    password_hash: str | None,
    is_operator: bool = False,
) -> User:
    """A new person; ConflictError where the address has an account."""
    email, name = normalise_email(email), check_person_name(name)
    repository = UserRepository(session)
    if await repository.find_user_by_email(email) is not None:
        raise ConflictError(f"There is an account of '{email}' already.", param="email")
    user = User(
        id=create_id("user"),
        email=email,
        name=name,
        password_hash=password_hash,
        is_operator=is_operator,
        created_at=now(),
        disabled_at=None,
    )
    repository.add(user)
    await repository.flush()
    return user


async def get_user(session: AsyncSession, id_or_email: str) -> User:
    """NotFoundError where there is none."""
    repository = UserRepository(session)
    user = await repository.find_user(id_or_email)
    if user is None and "@" in id_or_email:
        user = await repository.find_user_by_email(id_or_email.strip().lower())
    if user is None:
        raise NotFoundError(f"No user '{id_or_email}' exists.")
    return user


async def create_reset(session: AsyncSession, user: User) -> tuple[str, int]:
    """(a token that sets the person's password once, when it expires). Earlier ones end."""
    repository = UserRepository(session)
    await repository.delete_resets(user.id)
    token, expires_at = create_token("reset"), now() + RESET_TTL_S
    repository.add(
        PasswordReset(
            token_hash=hash_token(token), user_id=user.id, created_at=now(), expires_at=expires_at
        )
    )
    await repository.flush()
    return token, expires_at


async def disable_user(session: AsyncSession, user: User) -> None:
    """The person can do nothing any more, at once. ConflictError for the last operator."""
    repository = UserRepository(session)
    if user.disabled_at is None:
        user.disabled_at = now()
    await repository.flush()
    if user.is_operator and not await repository.has_operator():
        raise ConflictError("This is the last operator account; make another one first.")
    await repository.delete_resets(user.id)
    await SessionRepository(session).close_all_of(user.id)
