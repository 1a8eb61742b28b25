"""The operator's providers and domains. Each function works in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.ids import create_id, now
from weft.db.scope import TenantOwner
from weft.errors import ConflictError, InvalidRequestError, NotFoundError
from weft.sealing import seal, unseal
from weft.tenancy.emails import check_person_name, is_domain
from weft.tenancy.members import check_role
from weft.tenancy.oidc_flow import OidcClient
from weft.tenancy.oidc_repository import OidcRepository
from weft.tenancy.principal import TENANT_PERMISSIONS
from weft.tenancy.session_repository import SessionRepository
from weft.tenancy.user_models import OidcDomain, OidcProvider


def check_role_map(role_map: Mapping[str, str]) -> None:
    """InvalidRequestError where a claim's value would give what is no role of a tenant."""
    for role in role_map.values():
        try:
            check_role(role, TENANT_PERMISSIONS)
        except InvalidRequestError as error:
            raise InvalidRequestError(error.message, param="role_map") from None


async def create_provider(
    session: AsyncSession,
    key: bytes,
    *,
    name: str,
    issuer: str,
    client_id: str,
    client_secret: str | None,
    role_claim: str | None,
    role_map: Mapping[str, str],
) -> OidcProvider:
    """`issuer` was asked for its configuration by the caller."""
    check_role_map(role_map)
    row = OidcProvider(
        id=create_id("oidc"),
        name=check_person_name(name),
        issuer=issuer,
        client_id=client_id,
        sealed_secret=None,
        role_claim=role_claim,
        role_map=dict(role_map),
        created_at=now(),
        disabled_at=None,
    )
    set_secret(row, key, client_secret)
    repository = OidcRepository(session)
    repository.add(row)
    await repository.flush()
    return row


def set_secret(row: OidcProvider, key: bytes, secret: str | None) -> None:
    """The client's secret as it is kept: encrypted for this provider's row."""
    row.sealed_secret = None if secret is None else seal(key, _use(row), secret)


def client_of(row: OidcProvider, key: bytes) -> OidcClient:
    """We, as this provider knows us."""
    sealed = row.sealed_secret
    secret = None if sealed is None else unseal(key, _use(row), sealed)
    return OidcClient(row.id, row.issuer, row.client_id, secret)


def _use(row: OidcProvider) -> str:
    return f"client secret of {row.id}"


async def get_provider(session: AsyncSession, provider_id: str) -> OidcProvider:
    """NotFoundError where there is none in use."""
    row = await OidcRepository(session).find_provider(provider_id)
    if row is None:
        raise NotFoundError(f"No provider '{provider_id}' exists.")
    return row


async def delete_provider(session: AsyncSession, provider_id: str) -> OidcProvider:
    """Nobody signs in by it any more, and who did is signed out. The row stays on record."""
    row = await get_provider(session, provider_id)
    row.disabled_at = now()
    row.sealed_secret = None
    repository = OidcRepository(session)
    await repository.delete_domains(row.id)
    await repository.flush()
    await SessionRepository(session).close_all_by(row.id)
    return row


async def set_domain(
    session: AsyncSession,
    provider: OidcProvider,
    domain: str,
    tenant_id: str,
    *,
    admission: str,
    default_role: str,
) -> OidcDomain:
    """Have the provider vouch for the tenant's people at this domain, which the operator has
    verified to be theirs. ConflictError where it is another provider's or tenant's."""
    if not is_domain(domain):
        raise InvalidRequestError(f"'{domain}' is no domain in lower case.", param="domain")
    role = check_role(default_role, TENANT_PERMISSIONS)
    repository = OidcRepository(session)
    row = await repository.find_any_domain(domain)
    if row is None:
        row = OidcDomain(
            domain=domain,
            tenant_id=tenant_id,
            provider_id=provider.id,
            admission=admission,
            default_role=role,
            created_at=now(),
        )
        repository.add(row)
    elif (row.provider_id, row.tenant_id) != (provider.id, tenant_id):
        raise ConflictError(f"'{domain}' is another provider's or tenant's; delete it there first.")
    row.admission, row.default_role = admission, role
    await repository.flush()
    return row


async def delete_domain(session: AsyncSession, provider: OidcProvider, domain: str) -> OidcDomain:
    """The provider's people of that tenant are signed out."""
    repository = OidcRepository(session)
    row = await repository.find_any_domain(domain)
    if row is None or row.provider_id != provider.id:
        raise NotFoundError(f"No domain '{domain}' of this provider exists.")
    await repository.delete(row)
    await repository.flush()
    owner = TenantOwner(row.tenant_id)
    await SessionRepository(session).close_all_by(provider.id, owner.tenant_id)
    return row
