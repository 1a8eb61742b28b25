"""Counts attempts to sign in, for the account and for the address, and makes the next one wait.

An attempt is counted before its password is looked at, so that many at once are not one. Accounts
that do not exist are counted like those that do: waiting tells nobody which is which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.ids import now, now_ms
from weft.errors import RateLimitError
from weft.tenancy.lockout import ACCOUNT, ADDRESS, LockoutPolicy, account_key, address_key
from weft.tenancy.session_repository import SessionRepository
from weft.tenancy.user_models import SignInAttempts


@dataclass(frozen=True, slots=True)
class AttemptLimiter:
    """`secret` keys the hashes of accounts and addresses."""

    secret: bytes = field(repr=False)
    account: LockoutPolicy = ACCOUNT
    address: LockoutPolicy = ADDRESS

    async def check(self, session: AsyncSession, email: str, ip_address: str) -> None:
        """RateLimitError, with the time to wait, where the next attempt comes too early."""
        rows = await SessionRepository(session).lock_attempts(self._keys(email, ip_address))
        _refuse_early(rows)

    async def begin(self, session: AsyncSession, email: str, ip_address: str) -> None:
        """Count an attempt as failed; RateLimitError, and nothing counted, where it comes too
        early. In a transaction that is committed before the password is looked at."""
        keys = self._keys(email, ip_address)
        repository = SessionRepository(session)
        rows = {row.key: row for row in await repository.lock_attempts(keys)}
        _refuse_early(rows.values())
        for key, policy in zip(keys, (self.account, self.address), strict=True):
            row = rows.get(key)
            if row is None:
                row = SignInAttempts(key=key, num_failures=0, blocked_until_ms=0, expires_at=0)
                repository.add(row)
            num_before = row.num_failures if now() < row.expires_at else 0
            row.num_failures = num_before + 1
            row.blocked_until_ms = now_ms() + policy.wait_s(row.num_failures) * 1000
            row.expires_at = now() + policy.forget_s
        await repository.flush()

    async def succeed(self, session: AsyncSession, email: str, ip_address: str) -> None:
        """The attempt was right: the account's failures are forgotten, the address's stay, less
        this attempt. (Else an account of one's own would clear the address for more guesses.)"""
        account, address = self._keys(email, ip_address)
        for row in await SessionRepository(session).lock_attempts((account, address)):
            if row.key == account:
                await session.delete(row)
                continue
            row.num_failures = max(0, row.num_failures - 1)
            if self.address.wait_s(row.num_failures) == 0:
                row.blocked_until_ms = 0
        await session.flush()

    async def forgive(self, session: AsyncSession, email: str) -> None:
        """The account has a new password: earlier failures say nothing about it."""
        key = account_key(email, self.secret)
        for row in await SessionRepository(session).lock_attempts((key,)):
            await session.delete(row)

    def _keys(self, email: str, ip_address: str) -> tuple[str, str]:
        return account_key(email, self.secret), address_key(ip_address, self.secret)


def _refuse_early(rows: Iterable[SignInAttempts]) -> None:
    wait_ms = max((row.blocked_until_ms - now_ms() for row in rows), default=0)
    if wait_ms > 0:
        raise RateLimitError(
            "Too many attempts to sign in have failed; wait before the next one.",
            retry_after_s=math.ceil(wait_ms / 1000),
        )
