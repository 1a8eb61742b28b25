"""Local accounts on both databases: signing in, lockout, passwords, and how sessions end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import update

from weft.audit import SYSTEM
from weft.db.database import Database
from weft.db.ids import now
from weft.db.scope import TenantOwner, unscoped
from weft.errors import ConflictError, InvalidRequestError, PermissionDeniedError, RateLimitError
from weft.tenancy import members, service, sessions, users
from weft.tenancy.accounts import Accounts, ResetRefusedError
from weft.tenancy.attempts import AttemptLimiter
from weft.tenancy.invites import InviteRefusedError, Invites, create_invite
from weft.tenancy.lockout import LockoutPolicy
from weft.tenancy.passwords import PasswordHasher
from weft.tenancy.principal import (
    TENANT_PERMISSIONS,
    Client,
    Operator,
    Permission,
    TenantAdmin,
)
from weft.tenancy.roles import PERMISSIONS, Role
from weft.tenancy.session_repository import SessionRepository
from weft.tenancy.session_upkeep import SessionUpkeep
from weft.tenancy.sessions import NewSession, SessionPolicy, SignedIn, SignInFailedError
from weft.tenancy.user_models import UserSession

EMAIL, PASSWORD = "ada@acme.example", "correct horse battery staple"
OTHER_PASSWORD = "seven silent purple anchors"
MEMBERS: frozenset[Permission] = frozenset({"members:write"})
CLIENT = Client("192.0.2.7", "tests")
POLICY = SessionPolicy(idle_s=600, max_s=3600)


@dataclass
class World:
    """A database with two tenants, and Ada, who administers the first."""

    database: Database
    accounts: Accounts
    acme: str
    rival: str

    async def sign_in(self, tenant: str | None = None, email: str = EMAIL) -> NewSession:
        return await self.accounts.sign_in(email, PASSWORD, CLIENT, tenant=tenant)

    async def who(self, made: NewSession) -> SignedIn | None:
        async with self.database.reading() as session:
            return await sessions.find_signed_in(session, made.secret, POLICY)

    async def add(self, email: str, tenant: str, role: Role) -> str:
        """Another person with a role; gives their id."""
        password_hash = await self.accounts.hasher.hash(PASSWORD)
        async with self.database.writing() as session:
            user = await users.create_user(session, email, "", password_hash=password_hash)
            await members.add_member(session, user, tenant, role)
        return user.id

    async def invite(self, email: str, role: str = "developer") -> str:
        async with self.database.writing() as session:
            made = await create_invite(
                session, TenantOwner(self.acme), TENANT_PERMISSIONS, SYSTEM, email=email, role=role
            )
        return made.token


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    database = Database(database_url)
    hasher = PasswordHasher(Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1))
    accounts = Accounts(database, hasher, AttemptLimiter(b"a" * 32), POLICY)
    async with database.writing() as session:
        acme = (await service.create_tenant(session, "acme")).id
        rival = (await service.create_tenant(session, "rival")).id
    world = World(database, accounts, acme, rival)
    await world.add(EMAIL, acme, "tenant-admin")
    yield world
    await database.close()


async def test_a_person_acts_for_their_tenant_in_their_role(world: World) -> None:
    who = await world.who(await world.sign_in())
    assert who is not None
    assert (who.email, who.tenant_id, who.role) == (EMAIL, world.acme, "tenant-admin")
    identity = who.identity(CLIENT)
    assert isinstance(identity, TenantAdmin)
    assert identity.permissions == PERMISSIONS["tenant-admin"]
    assert (identity.kind, identity.id, identity.client) == ("session", who.user_id, CLIENT)


async def test_an_operator_acts_for_the_platform(world: World) -> None:
    async with world.database.writing() as session:
        (await users.get_user(session, EMAIL)).is_operator = True
    who = await world.who(await world.sign_in())
    assert who is not None
    assert isinstance(who.identity(CLIENT), Operator)
    chosen = await world.who(await world.sign_in("acme"))
    assert chosen is not None
    assert isinstance(chosen.identity(CLIENT), TenantAdmin)


async def test_who_has_several_tenants_acts_for_none_until_one_is_chosen(world: World) -> None:
    async with world.database.writing() as session:
        user = await users.get_user(session, EMAIL)
        await members.add_member(session, user, world.rival, "billing")
    who = await world.who(await world.sign_in())
    assert who is not None
    assert (who.tenant_id, who.role, who.identity(CLIENT)) == (None, None, None)
    chosen = await world.who(await world.sign_in("rival"))
    assert chosen is not None
    assert (chosen.tenant_id, chosen.role) == (world.rival, "billing")
    with pytest.raises(PermissionDeniedError):
        await world.sign_in("nowhere")


async def test_every_wrong_sign_in_is_one_refusal(world: World) -> None:
    async with world.database.writing() as session:
        await users.create_user(session, "sso@acme.example", "", password_hash=None)
    closed = await world.add("closed@acme.example", world.acme, "developer")
    async with world.database.writing() as session:
        await users.disable_user(session, await users.get_user(session, closed))
    messages = set()
    for email, password in (
        (EMAIL, "wrong"), ("nobody@acme.example", PASSWORD), ("sso@acme.example", ""),
        ("closed@acme.example", PASSWORD), ("no address\0", PASSWORD),
    ):  # fmt: skip
        with pytest.raises(SignInFailedError) as caught:
            await world.accounts.sign_in(email, password, CLIENT, tenant=None)
        messages.add((caught.value.message, str(caught.value.headers)))
    assert len(messages) == 1


@pytest.mark.parametrize("email", [EMAIL, "nobody@acme.example"])
async def test_failures_make_the_next_attempt_wait_whether_or_not_there_is_an_account(
    world: World, email: str
) -> None:
    policy = LockoutPolicy(num_free=2, first_wait_s=30, max_wait_s=60, forget_s=600)
    accounts = replace(world.accounts, limiter=AttemptLimiter(b"a" * 32, account=policy))
    for _ in range(2):
        with pytest.raises(SignInFailedError):
            await accounts.sign_in(email, "wrong", CLIENT, tenant=None)
    with pytest.raises(RateLimitError) as caught:
        await accounts.sign_in(email, PASSWORD, CLIENT, tenant=None)
    assert 25 <= int(caught.value.headers["retry-after"]) <= 30
    # from another address it is the same account
    with pytest.raises(RateLimitError):
        await accounts.sign_in(email, PASSWORD, Client("198.51.100.1"), tenant=None)


async def test_guesses_at_once_are_counted_one_by_one(world: World) -> None:
    policy = LockoutPolicy(num_free=3, first_wait_s=30, max_wait_s=60, forget_s=600)
    accounts = replace(world.accounts, limiter=AttemptLimiter(b"a" * 32, account=policy))
    results = await asyncio.gather(
        *(accounts.sign_in(EMAIL, f"guess {n}", CLIENT, tenant=None) for n in range(12)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, SignInFailedError) for result in results) == 3
    assert sum(isinstance(result, RateLimitError) for result in results) == 9


async def test_an_address_waits_over_all_accounts_and_an_own_account_does_not_clear_it(
    world: World,
) -> None:
    policy = LockoutPolicy(num_free=3, first_wait_s=30, max_wait_s=60, forget_s=600)
    accounts = replace(world.accounts, limiter=AttemptLimiter(b"a" * 32, address=policy))
    for n in range(2):
        with pytest.raises(SignInFailedError):
            await accounts.sign_in(f"victim{n}@acme.example", "guess", CLIENT, tenant=None)
    await accounts.sign_in(EMAIL, PASSWORD, CLIENT, tenant=None)
    with pytest.raises(SignInFailedError):
        await accounts.sign_in("victim3@acme.example", "guess", CLIENT, tenant=None)
    with pytest.raises(RateLimitError):
        await accounts.sign_in(EMAIL, PASSWORD, CLIENT, tenant=None)
    await accounts.sign_in(EMAIL, PASSWORD, Client("198.51.100.1"), tenant=None)


async def test_a_right_password_forgives_the_accounts_failures(world: World) -> None:
    policy = LockoutPolicy(num_free=3, first_wait_s=30, max_wait_s=60, forget_s=600)
    accounts = replace(world.accounts, limiter=AttemptLimiter(b"a" * 32, account=policy))
    for _ in range(3):
        for _ in range(2):
            with pytest.raises(SignInFailedError):
                await accounts.sign_in(EMAIL, "wrong", CLIENT, tenant=None)
        await accounts.sign_in(EMAIL, PASSWORD, CLIENT, tenant=None)


async def test_only_hashes_are_stored(world: World) -> None:
    made = await world.sign_in()
    user_id = made.row.user_id
    async with world.database.reading() as session:
        user = await users.get_user(session, user_id)
        (row,) = await SessionRepository(session).list_of(user_id)
    assert PASSWORD not in str(user.password_hash)
    columns = UserSession.__table__.columns
    assert made.secret not in str([getattr(row, column.key) for column in columns])
    assert made.secret not in repr(made)


async def test_a_session_ends_by_idleness_and_by_age(world: World) -> None:
    for change in (
        {"last_seen_at": now() - POLICY.idle_s},
        {"expires_at": now(), "last_seen_at": now()},
    ):
        made = await world.sign_in()
        assert await world.who(made) is not None
        statement = update(UserSession).where(UserSession.id == made.row.id).values(change)
        async with world.database.writing() as session:
            await session.execute(unscoped(statement, "a test"))
        assert await world.who(made) is None


async def test_use_is_remembered_and_ended_sessions_are_deleted(world: World) -> None:
    upkeep = SessionUpkeep(world.database, POLICY)
    used, idle = await world.sign_in(), await world.sign_in()
    statement = update(UserSession).values(last_seen_at=now() - POLICY.idle_s + 5)
    async with world.database.writing() as session:
        await session.execute(unscoped(statement, "a test"))
    who = await world.who(used)
    assert who is not None
    upkeep.saw(who)
    await upkeep.flush()
    statement = update(UserSession).where(UserSession.id == idle.row.id)
    async with world.database.writing() as session:
        await session.execute(
            unscoped(statement.values(last_seen_at=now() - POLICY.idle_s), "a test")
        )
    await upkeep.sweep()
    async with world.database.reading() as session:
        rows = await SessionRepository(session).list_of(who.user_id)
    assert [row.id for row in rows] == [used.row.id]
    assert rows[0].last_seen_at >= now() - 5


async def test_a_session_ends_with_what_it_stands_on(world: World) -> None:
    """Account, membership, role, tenant: each in turn, at the next request."""

    async def disable() -> None:
        async with world.database.writing() as session:
            await users.disable_user(session, await users.get_user(session, "b@acme.example"))

    async def remove() -> None:
        async with world.database.writing() as session:
            user = await users.get_user(session, "c@acme.example")
            await members.remove_member(
                session, TenantOwner(world.acme), TENANT_PERMISSIONS, user.id
            )

    async def demote() -> None:
        async with world.database.writing() as session:
            user = await users.get_user(session, "d@acme.example")
            await members.set_role(
                session, TenantOwner(world.acme), TENANT_PERMISSIONS, user.id, "read-only"
            )

    async def delete_tenant() -> None:
        async with world.database.writing() as session:
            await service.delete_tenant(session, "acme")

    for letter, end in zip("bcde", (disable, remove, demote, delete_tenant), strict=True):
        email = f"{letter}@acme.example"
        await world.add(email, world.acme, "developer")
        made = await world.sign_in(email=email)
        assert await world.who(made) is not None
        await end()
        assert await world.who(made) is None


async def test_a_new_password_ends_all_other_sessions(world: World) -> None:
    here, elsewhere = await world.sign_in(), await world.sign_in()
    who = await world.who(here)
    assert who is not None
    with pytest.raises(SignInFailedError):
        await world.accounts.change_password(who, "wrong", OTHER_PASSWORD, CLIENT)
    with pytest.raises(InvalidRequestError):
        await world.accounts.change_password(who, PASSWORD, "ada ada ada ada", CLIENT)
    made = await world.accounts.change_password(who, PASSWORD, OTHER_PASSWORD, CLIENT)
    assert await world.who(here) is None
    assert await world.who(elsewhere) is None
    renewed = await world.who(made)
    assert renewed is not None
    assert (renewed.tenant_id, renewed.expires_at) == (who.tenant_id, who.expires_at)
    with pytest.raises(SignInFailedError):
        await world.sign_in()


async def test_a_reset_works_once_and_ends_all_sessions(world: World) -> None:
    made = await world.sign_in()
    async with world.database.writing() as session:
        user = await users.get_user(session, EMAIL)
        replaced, _ = await users.create_reset(session, user)
        token, expires_at = await users.create_reset(session, user)
    assert now() < expires_at <= now() + users.RESET_TTL_S
    for wrong in (replaced, token + "x", ""):
        with pytest.raises(ResetRefusedError):
            await world.accounts.reset_password(wrong, OTHER_PASSWORD, CLIENT)
    with pytest.raises(InvalidRequestError, match="characters"):
        await world.accounts.reset_password(token, "short", CLIENT)
    await world.accounts.reset_password(token, OTHER_PASSWORD, CLIENT)
    assert await world.who(made) is None
    with pytest.raises(ResetRefusedError):
        await world.accounts.reset_password(token, PASSWORD, CLIENT)
    await world.accounts.sign_in(EMAIL, OTHER_PASSWORD, CLIENT, tenant=None)


async def test_an_invite_makes_a_member_once(world: World) -> None:
    invites = Invites(world.database, world.accounts)
    token = await world.invite("New@acme.example", "billing")
    with pytest.raises(InvalidRequestError, match="characters"):
        await invites.accept(token, "New", "short", CLIENT)
    assert await invites.accept(token, "New", PASSWORD, CLIENT) == world.acme
    who = await world.who(await world.sign_in(email="new@acme.example"))
    assert who is not None
    assert (who.tenant_id, who.role, who.name) == (world.acme, "billing", "New")
    for used in (token, token + "x"):
        with pytest.raises(InviteRefusedError):
            await invites.accept(used, "New", PASSWORD, CLIENT)


async def test_an_invite_does_not_hand_over_an_account_that_is_there(world: World) -> None:
    invites = Invites(world.database, world.accounts)
    await world.add("eve@rival.example", world.rival, "developer")
    token = await world.invite("eve@rival.example")
    with pytest.raises(SignInFailedError):
        await invites.accept(token, "", OTHER_PASSWORD, CLIENT)
    await invites.accept(token, "", PASSWORD, CLIENT)
    who = await world.who(await world.sign_in("acme", email="eve@rival.example"))
    assert who is not None
    assert who.role == "developer"


async def test_nobody_gives_or_takes_a_role_above_their_own(world: World) -> None:
    acme, few = TenantOwner(world.acme), PERMISSIONS["billing"] | MEMBERS
    ada = (await world.sign_in()).row.user_id
    dev = await world.add("dev@acme.example", world.acme, "developer")
    async with world.database.writing() as session:
        for role in ("tenant-admin", "developer"):
            with pytest.raises(PermissionDeniedError):
                await create_invite(session, acme, few, SYSTEM, email="x@x.example", role=role)
        with pytest.raises(PermissionDeniedError):
            await members.set_role(session, acme, few, dev, "billing")
        with pytest.raises(PermissionDeniedError):
            await members.remove_member(session, acme, few, ada)
        for role in ("operator", "owner", ""):
            with pytest.raises(InvalidRequestError):
                await members.set_role(session, acme, TENANT_PERMISSIONS, dev, role)


async def test_a_tenant_keeps_an_administrator(world: World) -> None:
    acme, ada = TenantOwner(world.acme), (await world.sign_in()).row.user_id
    async with world.database.writing() as session:
        with pytest.raises(ConflictError):
            await members.set_role(session, acme, TENANT_PERMISSIONS, ada, "developer")
        with pytest.raises(ConflictError):
            await members.remove_member(session, acme, TENANT_PERMISSIONS, ada)
    await world.add("second@acme.example", world.acme, "tenant-admin")
    async with world.database.writing() as session:
        await members.set_role(session, acme, TENANT_PERMISSIONS, ada, "developer")


async def test_an_address_has_one_account(world: World) -> None:
    async with world.database.writing() as session:
        with pytest.raises(ConflictError):
            await users.create_user(session, "ADA@acme.example", "", password_hash=None)
