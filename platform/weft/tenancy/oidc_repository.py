"""Queries on providers, the domains that they vouch for, and who their subjects are."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Row, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.paging import Page, PageRequest
from weft.db.scope import unscoped
from weft.tenancy.models import Tenant
from weft.tenancy.user_models import OidcDomain, OidcIdentity, OidcProvider, User

_OPERATORS = "providers and their domains are the operator's"
_SIGN_IN = "the domain of who signs in tells the tenant"


class OidcRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, *rows: OidcProvider | OidcDomain | OidcIdentity) -> None:
        self._session.add_all(rows)

    async def delete(self, row: OidcDomain) -> None:
        await self._session.delete(row)

    async def flush(self) -> None:
        await self._session.flush()

    async def find_provider(self, provider_id: str) -> OidcProvider | None:
        """One that is in use."""
        statement = select(OidcProvider).where(
            OidcProvider.id == provider_id, OidcProvider.disabled_at.is_(None)
        )
        return await self._session.scalar(unscoped(statement, _OPERATORS))

    async def list_providers(self, page: PageRequest) -> Page[OidcProvider]:
        statement = page.apply(
            select(OidcProvider).where(OidcProvider.disabled_at.is_(None)), OidcProvider.id
        )
        rows = (await self._session.scalars(unscoped(statement, _OPERATORS))).all()
        return Page.of(rows, page)

    async def find_domain(self, domain: str) -> Row[OidcDomain, Tenant] | None:
        """With its tenant, which lives."""
        statement = (
            select(OidcDomain, Tenant)
            .join(Tenant, Tenant.id == OidcDomain.tenant_id)
            .where(OidcDomain.domain == domain, Tenant.deleted_at.is_(None))
        )
        return (await self._session.execute(unscoped(statement, _SIGN_IN))).one_or_none()

    async def find_any_domain(self, domain: str) -> OidcDomain | None:
        """Also one whose tenant was deleted."""
        statement = select(OidcDomain).where(OidcDomain.domain == domain)
        return await self._session.scalar(unscoped(statement, _OPERATORS))

    async def list_domains(self, provider_id: str) -> Sequence[OidcDomain]:
        statement = (
            select(OidcDomain)
            .where(OidcDomain.provider_id == provider_id)
            .order_by(OidcDomain.domain)
        )
        return (await self._session.scalars(unscoped(statement, _OPERATORS))).all()

    async def delete_domains(self, provider_id: str) -> None:
        statement = delete(OidcDomain).where(OidcDomain.provider_id == provider_id)
        await self._session.execute(unscoped(statement, _OPERATORS))

    async def find_user_of(self, provider_id: str, subject: str) -> User | None:
        """The person whom this provider knows as `subject`."""
        statement = (
            select(User)
            .join(OidcIdentity, OidcIdentity.user_id == User.id)
            .where(OidcIdentity.provider_id == provider_id, OidcIdentity.subject == subject)
        )
        return await self._session.scalar(unscoped(statement, _SIGN_IN))

    async def has_identity(self, provider_id: str, user_id: str) -> bool:
        """Whether the provider knows this person already, as whomever."""
        statement = select(OidcIdentity.subject).where(
            OidcIdentity.provider_id == provider_id, OidcIdentity.user_id == user_id
        )
        found = await self._session.scalars(unscoped(statement.limit(1), _SIGN_IN))
        return found.first() is not None
