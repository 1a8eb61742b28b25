"""A migrated database of either kind with a tenant in it, and an authenticator over it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from weft.db.database import Database
from weft.db.scope import TenantOwner
from weft.tenancy import key_service, service
from weft.tenancy.authenticator import Authenticator
from weft.tenancy.authority import Maker
from weft.tenancy.keys import create_key
from weft.tenancy.models import ApiKey, Project

PEPPER = b"p" * 32


@dataclass
class Office:
    """What a test of keys needs. `clock_s` is what the authenticator takes for the time."""

    database: Database
    operator_key: str = field(default_factory=lambda: str(create_key("operator")))
    clock_s: float = 1000.0

    def __post_init__(self) -> None:
        self.authenticator = self.new_authenticator()

    def new_authenticator(self) -> Authenticator:
        """As of another worker, or of this one after a restart."""
        return Authenticator(self.database, PEPPER, self.operator_key, lambda: self.clock_s)

    async def tenant(self, name: str) -> TenantOwner:
        async with self.database.writing() as session:
            return TenantOwner((await service.create_tenant(session, name)).id)

    async def project(self, owner: TenantOwner) -> Project:
        async with self.database.reading() as session:
            return await service.default_project(session, owner)

    async def key(
        self, owner: TenantOwner, maker: Maker = None, scopes: list[str] | None = None
    ) -> key_service.NewKey[ApiKey]:
        """A key of the default project."""
        async with self.database.writing() as session:
            project = await service.default_project(session, owner)
            return await key_service.create_project_key(
                session, project, PEPPER, maker, scopes=scopes
            )


@pytest.fixture
async def office(database_url: str) -> AsyncIterator[Office]:
    database = Database(database_url)
    yield Office(database)
    await database.close()


@pytest.fixture
async def acme(office: Office) -> TenantOwner:
    """A tenant."""
    return await office.tenant("acme")
