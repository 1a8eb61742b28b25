"""Turns the text of a key into who acts, without asking the database more than it must."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from weft.db.database import Database
from weft.db.ids import now
from weft.errors import AuthenticationError, TenantSuspendedError
from weft.tenancy.authority import authority_of_makers
from weft.tenancy.bad_keys import BadKeys
from weft.tenancy.identity_cache import IdentityCache, Outcome
from weft.tenancy.key_repository import AnyKey, KeyRepository
from weft.tenancy.key_uses import KeyUses
from weft.tenancy.keys import KeyText, hash_secret, try_parse_key
from weft.tenancy.models import AdminKey, ApiKey, OperatorKey, Tenant
from weft.tenancy.principal import (
    ALL_PERMISSIONS,
    TENANT_PERMISSIONS,
    Identity,
    Operator,
    Principal,
    TenantAdmin,
)
from weft.tenancy.roles import grantable_scopes

# of keys that nobody knows here, so that guessing cannot take every connection
MAX_LOOKUPS_OF_STRANGERS = 16


class Authenticator:
    """One per worker. Whoever changes what a key stands for calls `forget_all` once that is
    committed; on other workers the change holds `identity_cache.TTL_S` later."""

    def __init__(
        self,
        database: Database,
        pepper: bytes,
        operator_key: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pepper = pepper
        self._database = database
        self._operator_key = operator_key
        self._cache = IdentityCache(clock)
        self._bad_keys = BadKeys(clock)
        self._strangers = asyncio.Semaphore(MAX_LOOKUPS_OF_STRANGERS)
        self._uses = KeyUses(database)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Notes, while it is open, when keys are used."""
        async with self._uses.running():
            yield

    def forget_all(self) -> None:
        """What a key stands for has changed: the next request of each is looked up."""
        self._cache.forget_all()

    async def authenticate(self, text: str, address: str | None = None) -> Identity:
        """AuthenticationError, always the same, unless the key is right and may act.

        TenantSuspendedError for a right key of a suspended tenant. `address`: the client's;
        RateLimitError once it has sent too many bad keys, until it sends one known to be good.
        """
        parsed = try_parse_key(text)
        if parsed is None:
            self._bad_keys.check(address)
            self._bad_keys.note(address)
            raise AuthenticationError
        digest = hashlib.sha256(text.encode()).digest()
        outcome = self._cache.find(digest)
        if outcome is None or isinstance(outcome, str):
            outcome = await self._ask(digest, text, parsed, address, outcome)
        if outcome == "suspended":
            raise TenantSuspendedError
        if outcome == "invalid":
            self._bad_keys.note(address)
            raise AuthenticationError
        self._uses.note(parsed)
        return outcome

    async def _ask(
        self,
        digest: bytes,
        text: str,
        parsed: KeyText,
        address: str | None,
        outcome: Outcome | None,
    ) -> Outcome:
        async def read() -> Outcome:
            return await self._look_up(text, parsed)

        if self._cache.was_good(digest):
            return await self._cache.read(digest, read)
        self._bad_keys.check(address)
        if outcome is not None:
            return outcome
        async with self._strangers:
            # while this one waited, others from the address may have turned out to be bad
            self._bad_keys.check(address)
            return await self._cache.read(digest, read)

    async def _look_up(self, text: str, parsed: KeyText) -> Outcome:
        if hmac.compare_digest(text, self._operator_key):
            return Operator(parsed.key_id)
        # its own short session: a generation must not hold a connection
        async with self._database.reading() as session:
            repository = KeyRepository(session)
            row, tenant = await _find(repository, parsed)
            # one that does not exist takes the same path as one whose secret is wrong
            hmacs = ("", "") if row is None else row.hmacs_at(now())
            hashed = hash_secret(parsed.secret, self.pepper)
            is_right = any([hmac.compare_digest(hashed, expected) for expected in hmacs])
            if row is None or not is_right or not row.is_valid_at(now()):
                return "invalid"
            if tenant is not None and tenant.suspended_at is not None:
                return "suspended"
            allowed = await authority_of_makers(session, row)
        if isinstance(row, ApiKey):
            scopes = grantable_scopes(allowed) & frozenset(row.scopes)
            assert tenant is not None, "a project's key is found with its tenant"
            return Principal(
                row.tenant_id, row.project_id, row.id, frozenset(scopes),
                include_obfuscation=tenant.include_obfuscation,
            )  # fmt: skip
        permissions = allowed & frozenset(row.permissions)
        if isinstance(row, AdminKey):
            return TenantAdmin(row.tenant_id, permissions & TENANT_PERMISSIONS, "admin_key", row.id)
        return Operator(row.id, permissions & ALL_PERMISSIONS)


async def _find(repository: KeyRepository, parsed: KeyText) -> tuple[AnyKey | None, Tenant | None]:
    if parsed.kind == "operator":
        operator: OperatorKey | None = await repository.find_operator_key(parsed.key_id)
        return operator, None
    if parsed.kind == "admin":
        return await repository.find_admin_key_of_anyone(parsed.key_id) or (None, None)
    return await repository.find_project_key_of_anyone(parsed.key_id) or (None, None)
