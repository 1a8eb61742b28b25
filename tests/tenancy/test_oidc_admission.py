"""Who comes in by a provider's word, on both databases: persons, memberships, roles."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from weft.audit import SYSTEM
from weft.db.database import Database
from weft.db.scope import TenantOwner
from weft.errors import ConflictError, InvalidRequestError, NotFoundError
from weft.sealing import UnsealError
from weft.tenancy import oidc_providers, service, users
from weft.tenancy.invites import create_invite
from weft.tenancy.members import add_member, get_member
from weft.tenancy.oidc_admission import NotAdmittedError, admit, read_claims
from weft.tenancy.principal import TENANT_PERMISSIONS, Client
from weft.tenancy.sessions import SessionPolicy, SignedIn, find_signed_in
from weft.tenancy.user_models import OidcProvider

KEY = b"k" * 32
POLICY = SessionPolicy(idle_s=600, max_s=3600)
ROLES = {"admins": "tenant-admin", "devs": "developer"}


@dataclass
class World:
    """A database with two tenants; a provider vouches for the people of both."""

    database: Database
    acme: str
    rival: str
    provider_id: str

    async def sign_in(self, **changed: Any) -> SignedIn:
        """Ada, whose claims are changed."""
        claims = {
            "sub": "ada-1", "email": "ada@acme.example", "email_verified": True, "groups": ["devs"],
            **changed,
        }  # fmt: skip
        async with self.database.writing() as session:
            provider = await oidc_providers.get_provider(session, self.provider_id)
            vouched = read_claims(provider, claims)
            made = await admit(session, provider, vouched, Client("192.0.2.7"), POLICY)
        async with self.database.reading() as session:
            who = await find_signed_in(session, made.secret, POLICY)
        assert who is not None
        return who


async def create_provider(database: Database, **more: Any) -> OidcProvider:
    fields = {
        "name": "", "issuer": "https://id.example", "client_id": "weft", "client_secret": "hush",
        "role_claim": "groups", "role_map": ROLES, **more,
    }  # fmt: skip
    async with database.writing() as session:
        return await oidc_providers.create_provider(session, KEY, **fields)


async def set_domain(world: World, domain: str, tenant: str, admission: str = "jit") -> None:
    async with world.database.writing() as session:
        provider = await oidc_providers.get_provider(session, world.provider_id)
        await oidc_providers.set_domain(
            session, provider, domain, tenant, admission=admission, default_role="read-only"
        )


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    database = Database(database_url)
    async with database.writing() as session:
        acme = (await service.create_tenant(session, "acme")).id
        rival = (await service.create_tenant(session, "rival")).id
    provider = await create_provider(database)
    world = World(database, acme, rival, provider.id)
    await set_domain(world, "acme.example", acme)
    await set_domain(world, "rival.example", rival)
    yield world
    await database.close()


async def test_a_domain_leads_to_its_tenant_and_claims_to_a_role(world: World) -> None:
    who = await world.sign_in()
    assert (who.tenant_id, who.role, who.provider_id) == (
        world.acme, "developer", world.provider_id,
    )  # fmt: skip
    eve = await world.sign_in(sub="eve-1", email="eve@rival.example", groups="admins")
    assert (eve.tenant_id, eve.role) == (world.rival, "tenant-admin")
    nobody = await world.sign_in(sub="x", email="x@acme.example", groups={"admins": True})
    assert nobody.role == "read-only"


async def test_the_same_subject_is_the_same_person_in_the_role_of_today(world: World) -> None:
    first = await world.sign_in(groups=["admins"])
    # the last administrator, too: a provider that demotes means it
    again = await world.sign_in(groups=[])
    assert (again.user_id, again.role) == (first.user_id, "read-only")
    async with world.database.reading() as session:
        membership, _ = await get_member(session, TenantOwner(world.acme), first.user_id)
    assert membership.source == world.provider_id


async def test_an_invite_opens_what_is_closed_to_others(world: World) -> None:
    await set_domain(world, "acme.example", world.acme, "invite")
    with pytest.raises(NotAdmittedError):
        await world.sign_in()
    async with world.database.writing() as session:
        await create_invite(
            session,
            TenantOwner(world.acme),
            TENANT_PERMISSIONS,
            SYSTEM,
            email="ada@acme.example",
            role="billing",
        )
    assert (await world.sign_in(groups=[])).role == "billing"


async def test_a_role_that_was_given_here_is_not_the_providers_to_change(world: World) -> None:
    async with world.database.writing() as session:
        user = await users.create_user(session, "ada@acme.example", "", password_hash=None)
        await add_member(session, user, world.acme, "billing")
    who = await world.sign_in(groups=["admins"])
    assert (who.user_id, who.role) == (user.id, "billing")


async def test_a_refusal_leaves_nobody_behind(world: World) -> None:
    await set_domain(world, "acme.example", world.acme, "invite")
    with pytest.raises(NotAdmittedError):
        await world.sign_in()
    async with world.database.reading() as session:
        with pytest.raises(NotFoundError):
            await users.get_user(session, "ada@acme.example")


async def test_a_domain_is_one_tenants_and_one_providers(world: World) -> None:
    with pytest.raises(ConflictError):
        await set_domain(world, "acme.example", world.rival)
    for domain in ("", "*.example", "Acme.example", "acme.example."):
        with pytest.raises(InvalidRequestError):
            await set_domain(world, domain, world.acme)
    other = await create_provider(world.database, issuer="https://other.example")
    async with world.database.writing() as session:
        with pytest.raises(ConflictError):
            await oidc_providers.set_domain(
                session, other, "acme.example", world.acme, admission="jit", default_role="billing"
            )
        vouched = read_claims(
            other, {"sub": "ada-1", "email": "ada@acme.example", "email_verified": True}
        )
        with pytest.raises(NotAdmittedError):
            await admit(session, other, vouched, Client(), POLICY)


async def test_a_clients_secret_is_sealed_for_its_row(world: World) -> None:
    async with world.database.reading() as session:
        row = await oidc_providers.get_provider(session, world.provider_id)
    assert oidc_providers.client_of(row, KEY).secret == "hush"
    assert "hush" not in repr(oidc_providers.client_of(row, KEY))
    other = await create_provider(world.database)
    other.sealed_secret = row.sealed_secret
    with pytest.raises(UnsealError):
        oidc_providers.client_of(other, KEY)


async def test_roles_of_the_platform_are_no_providers_to_give(world: World) -> None:
    with pytest.raises(InvalidRequestError):
        await create_provider(world.database, role_map={"x": "operator"})


@pytest.mark.parametrize(
    "changed",
    [
        {"email_verified": False}, {"email_verified": "true"}, {"email_verified": None},
        {"email": None}, {"email": "ada@evil.example, x@acme.example"}, {"email": ["a@b.example"]},
        {"sub": None}, {"sub": ""}, {"sub": "a\nb"}, {"sub": "x" * 256}, {"sub": 7},
    ],
    ids=str,
)  # fmt: skip
def test_claims_that_name_nobody_for_sure_are_refused(changed: dict[str, Any]) -> None:
    provider = OidcProvider(role_claim=None, role_map={})
    claims = {"sub": "ada-1", "email": "ada@acme.example", "email_verified": True}
    assert read_claims(provider, claims).email == "ada@acme.example"
    with pytest.raises(NotAdmittedError):
        read_claims(provider, {**claims, **changed})


def test_a_name_that_cannot_be_shown_keeps_nobody_out() -> None:
    provider = OidcProvider(role_claim=None, role_map={})
    claims = {"sub": "ada-1", "email": "ada@acme.example", "email_verified": True}
    assert read_claims(provider, {**claims, "name": "Ada"}).name == "Ada"
    for name in ("a\x1b[31m", "=cmd", 7, None):
        assert read_claims(provider, {**claims, "name": name}).name == ""
