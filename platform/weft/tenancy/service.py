"""What can be done with tenants and keys. Each function works in the caller's transaction."""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.ids import create_id, now
from weft.db.paging import Page, PageRequest
from weft.db.scope import TenantOwner
from weft.errors import AuthenticationError, ConflictError, InvalidRequestError, NotFoundError
from weft.tenancy.keys import KeyText, create_key, hash_secret, try_parse_key
from weft.tenancy.models import ApiKey, Project, Tenant
from weft.tenancy.principal import ALL_SCOPES, Operator, Principal
from weft.tenancy.repository import TenantRepository

DEFAULT_PROJECT = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,126}")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made. `text` is shown once and stored nowhere."""

    row: ApiKey
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Turns the text of a key into who acts."""

    pepper: bytes = field(repr=False)
    operator_key: str = field(repr=False)

    async def authenticate(self, session: AsyncSession, text: str) -> Principal | Operator:
        """AuthenticationError, always the same, unless the key is right and alive."""
        parsed = try_parse_key(text)
        if parsed is None:
            raise AuthenticationError
        if parsed.kind == "admin":
            if not hmac.compare_digest(text, self.operator_key):
                raise AuthenticationError
            return Operator(parsed.key_id)
        row = await TenantRepository(session).find_key_of_anyone(parsed.key_id)
        expected = "" if row is None else row.secret_hmac
        is_right = hmac.compare_digest(hash_secret(parsed.secret, self.pepper), expected)
        if row is None or not is_right or not row.is_valid_at(now()):
            raise AuthenticationError
        return Principal(row.tenant_id, row.project_id, row.id, frozenset(row.scopes))


async def create_tenant(session: AsyncSession, name: str) -> Tenant:
    """A tenant with its default project."""
    if not _NAME.fullmatch(name) or name.startswith("tnt_"):
        raise InvalidRequestError(
            "A tenant's name is 1 to 127 letters, digits, spaces, '.', '_' or '-', begins with a "
            "letter or digit, and not with 'tnt_'.",
            param="name",
        )
    repository = TenantRepository(session)
    if await repository.find_tenant(name) is not None:
        raise ConflictError(f"A tenant named '{name}' exists already.", param="name")
    tenant = Tenant(id=create_id("tnt"), name=name, created_at=now(), deleted_at=None)
    repository.add(tenant)
    await repository.flush()
    repository.add(
        Project(id=create_id("proj"), tenant_id=tenant.id, name=DEFAULT_PROJECT, created_at=now())
    )
    await repository.flush()
    return tenant


async def get_tenant(session: AsyncSession, id_or_name: str) -> Tenant:
    """NotFoundError where there is no live tenant of this id or name."""
    tenant = await TenantRepository(session).find_tenant(id_or_name)
    if tenant is None:
        raise NotFoundError(f"No tenant '{id_or_name}' exists.")
    return tenant


async def list_tenants(session: AsyncSession, page: PageRequest) -> Page[Tenant]:
    return await TenantRepository(session).list_tenants(page)


async def delete_tenant(session: AsyncSession, id_or_name: str) -> Tenant:
    """The tenant's keys stop working at once; its usage stays on record."""
    tenant = await get_tenant(session, id_or_name)
    tenant.deleted_at = now()
    await TenantRepository(session).revoke_all_keys(TenantOwner(tenant.id), now())
    return tenant


async def create_tenant_key(
    session: AsyncSession,
    tenant_id_or_name: str,
    pepper: bytes,
    *,
    name: str = "",
    scopes: Collection[str] = ALL_SCOPES,
    expires_at: int | None = None,
) -> NewKey:
    """A key of the tenant's default project."""
    unknown = sorted(set(scopes) - set(ALL_SCOPES))
    if unknown or not scopes:
        problem = f"'{unknown[0]}' is no scope" if unknown else "A key needs a scope"
        raise InvalidRequestError(f"{problem}; scopes are {', '.join(ALL_SCOPES)}.", param="scopes")
    if expires_at is not None and expires_at <= now():
        raise InvalidRequestError("The key would have expired already.", param="expires_at")
    repository = TenantRepository(session)
    tenant = await get_tenant(session, tenant_id_or_name)
    project = await repository.find_project(DEFAULT_PROJECT, TenantOwner(tenant.id))
    assert project is not None, "every tenant has a default project"
    key = create_key("live")
    row = _key_row(key, project, pepper, name, scopes, expires_at)
    repository.add(row)
    await repository.flush()
    return NewKey(row, str(key))


def _key_row(
    key: KeyText,
    project: Project,
    pepper: bytes,
    name: str,
    scopes: Collection[str],
    expires_at: int | None,
) -> ApiKey:
    return ApiKey(
        id=key.key_id,
        tenant_id=project.tenant_id,
        project_id=project.id,
        name=name,
        secret_hmac=hash_secret(key.secret, pepper),
        last4=key.last4,
        scopes=sorted(scopes),
        created_at=now(),
        expires_at=expires_at,
        revoked_at=None,
    )


async def list_tenant_keys(session: AsyncSession, tenant_id_or_name: str) -> Sequence[ApiKey]:
    tenant = await get_tenant(session, tenant_id_or_name)
    return await TenantRepository(session).list_keys(TenantOwner(tenant.id))


async def revoke_tenant_key(session: AsyncSession, tenant_id_or_name: str, key_id: str) -> ApiKey:
    """Idempotent: the first revocation's time stays."""
    tenant = await get_tenant(session, tenant_id_or_name)
    row = await TenantRepository(session).find_key(key_id, TenantOwner(tenant.id))
    if row is None:
        raise NotFoundError(f"No key '{key_id}' exists.")
    if row.revoked_at is None:
        row.revoked_at = now()
    return row
