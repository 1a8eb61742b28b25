"""Who comes in by a provider's word: claims become a person, a membership and a session.

The provider vouches for addresses at the domains that the operator gave it, and for nothing else.
It decides on the tenant of such a domain only; it never makes an operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import Target, record
from weft.db.ids import now
from weft.db.scope import TenantOwner
from weft.errors import InvalidRequestError, PermissionDeniedError
from weft.tenancy.acting import person_actor
from weft.tenancy.emails import check_person_name, domain_of, normalise_email
from weft.tenancy.members import add_member
from weft.tenancy.oidc_repository import OidcRepository
from weft.tenancy.principal import Client
from weft.tenancy.roles import PERMISSIONS, TENANT_ROLES, Role
from weft.tenancy.session_repository import SessionRepository
from weft.tenancy.sessions import NewSession, SessionPolicy, open_session
from weft.tenancy.user_models import (
    LOCAL,
    Membership,
    OidcDomain,
    OidcIdentity,
    OidcProvider,
    User,
)
from weft.tenancy.user_repository import UserRepository
from weft.tenancy.users import create_user

_MAX_SUBJECT_CHARS = 255


class NotAdmittedError(PermissionDeniedError):
    """The provider knows the person, and we do not let them in."""

    code = "not_admitted"


@dataclass(frozen=True, slots=True)
class Vouched:
    """What a provider's claims say of a person."""

    subject: str
    email: str
    name: str
    role: Role | None


def read_claims(provider: OidcProvider, claims: Mapping[str, Any]) -> Vouched:
    """NotAdmittedError unless the provider has verified the person's address."""
    subject, email = claims.get("sub"), claims.get("email")
    if not isinstance(subject, str) or not 0 < len(subject) <= _MAX_SUBJECT_CHARS:
        raise NotAdmittedError("The provider does not say who you are.")
    if not subject.isprintable() or not isinstance(email, str):
        raise NotAdmittedError("The provider does not tell your address.")
    # True itself: a text such as "false" is no word of a provider's
    if claims.get("email_verified") is not True:
        raise NotAdmittedError("The provider has not verified your address.")
    try:
        email = normalise_email(email)
    except InvalidRequestError as error:
        raise NotAdmittedError(error.message) from None
    return Vouched(subject, email, _name(claims.get("name")), _claimed_role(provider, claims))


def _name(claim: object) -> str:
    try:
        return check_person_name(claim[:128]) if isinstance(claim, str) else ""
    except InvalidRequestError:
        return ""  # a name that cannot be shown keeps nobody out


def _claimed_role(provider: OidcProvider, claims: Mapping[str, Any]) -> Role | None:
    """The role of most permissions among those that the claim's values stand for."""
    if provider.role_claim is None:
        return None
    value = claims.get(provider.role_claim)
    values = value if isinstance(value, list) else [value]
    named = {provider.role_map.get(each) for each in values if isinstance(each, str)}
    found = [role for role in TENANT_ROLES if role in named]
    return max(found, key=lambda role: len(PERMISSIONS[role]), default=None)


async def admit(
    session: AsyncSession,
    provider: OidcProvider,
    vouched: Vouched,
    client: Client,
    policy: SessionPolicy,
    *,
    replaced_hash: str | None = None,
) -> NewSession:
    """A session for the person, for the tenant of their address's domain. NotAdmittedError where
    the domain is not the provider's, or the tenant takes in invited people only."""
    found = await OidcRepository(session).find_domain(domain_of(vouched.email))
    if found is None or found[0].provider_id != provider.id:
        raise NotAdmittedError("No tenant takes in people of your address's domain.")
    domain: OidcDomain = found[0]
    user = await _find_person(session, provider, vouched)
    membership, role_before = None, None
    if user is not None:
        if user.disabled_at is not None:
            raise NotAdmittedError("Your account is closed.")
        owner = TenantOwner(domain.tenant_id)
        membership = await UserRepository(session).find_membership(user.id, owner)
    if membership is not None:
        role_before = membership.role
        await _follow(session, provider, domain, vouched, membership)
    else:
        role = await _role_of_newcomer(session, domain, vouched)
        if user is None:
            user = await create_user(session, vouched.email, vouched.name, password_hash=None)
        membership = await add_member(session, user, domain.tenant_id, role, source=provider.id)
    assert user is not None, "who has a membership is a person"
    await _remember(session, provider, vouched, user)
    if replaced_hash is not None:
        await SessionRepository(session).close(replaced_hash)
    made = await open_session(
        session, user, client, policy, tenant_id=domain.tenant_id, provider_id=provider.id
    )
    actor = person_actor(user.id, domain.tenant_id, client)
    target = Target(user.id, domain.tenant_id)
    if membership.role != role_before:
        event = "user.added" if role_before is None else "user.updated"
        changes = {"email": user.email, "role": membership.role, "provider": provider.id}
        await record(session, actor, event, target, changes)
    changes = {"method": "oidc", "provider": provider.id, "session": made.row.id}
    await record(session, actor, "login.succeeded", target, changes)
    return made


async def _find_person(
    session: AsyncSession, provider: OidcProvider, vouched: Vouched
) -> User | None:
    """By the provider's subject; at the first sign-in by the address."""
    repository = OidcRepository(session)
    user = await repository.find_user_of(provider.id, vouched.subject)
    if user is not None:
        return user
    user = await UserRepository(session).find_user_by_email(vouched.email)
    if user is not None and await repository.has_identity(provider.id, user.id):
        # the address was given to somebody else since
        raise NotAdmittedError("Your address belongs to another account; ask the operator.")
    return user


async def _follow(
    session: AsyncSession,
    provider: OidcProvider,
    domain: OidcDomain,
    vouched: Vouched,
    membership: Membership,
) -> None:
    """Give a member the role that the claims say now, where the provider decides on it. Also the
    last administrator loses theirs: whoever the provider has demoted is not to stay in power."""
    if membership.source == LOCAL:
        return
    membership.source = provider.id
    role = vouched.role or cast(Role, domain.default_role)
    if provider.role_claim is not None and membership.role != role:
        membership.role = role
        await SessionRepository(session).close_all_in(membership.user_id, membership.tenant_id)


async def _role_of_newcomer(session: AsyncSession, domain: OidcDomain, vouched: Vouched) -> Role:
    repository, owner = UserRepository(session), TenantOwner(domain.tenant_id)
    invite = await repository.find_open_invite(vouched.email, owner, now())
    if invite is not None:
        invite.accepted_at = now()
        return vouched.role or cast(Role, invite.role)
    if domain.admission != "jit":
        raise NotAdmittedError("Your company's administrator has to invite you first.")
    return vouched.role or cast(Role, domain.default_role)


async def _remember(
    session: AsyncSession, provider: OidcProvider, vouched: Vouched, user: User
) -> None:
    repository = OidcRepository(session)
    if await repository.find_user_of(provider.id, vouched.subject) is None:
        identity = OidcIdentity(
            provider_id=provider.id, subject=vouched.subject, user_id=user.id, created_at=now()
        )
        repository.add(identity)
        await repository.flush()
