"""A tenant's members and their roles. Each function works in the caller's transaction.

Nobody gives, changes or takes away a role that may do more than they may themselves.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.ids import create_id, now
from weft.db.scope import Owner
from weft.errors import ConflictError, InvalidRequestError, NotFoundError, PermissionDeniedError
from weft.tenancy.principal import Permission
from weft.tenancy.roles import PERMISSIONS, TENANT_ROLES, Role
from weft.tenancy.session_repository import SessionRepository
from weft.tenancy.user_models import LOCAL, Membership, User
from weft.tenancy.user_repository import UserRepository


def check_role(role: str, allowed: Collection[Permission]) -> Role:
    """`role` as one that a tenant has and that whoever may do `allowed` may give."""
    if role not in TENANT_ROLES:
        raise InvalidRequestError(
            f"'{role}' is no role of a tenant; roles are {', '.join(TENANT_ROLES)}.", param="role"
        )
    known: Role = role
    if not PERMISSIONS[known] <= frozenset(allowed):
        raise PermissionDeniedError(f"The role '{role}' may do more than you may.")
    return known


async def get_member(session: AsyncSession, owner: Owner, user_id: str) -> tuple[Membership, User]:
    """NotFoundError for who is not there, and for members of other tenants."""
    found = await UserRepository(session).find_member(user_id, owner)
    if found is None:
        raise NotFoundError(f"No user '{user_id}' exists.")
    return found[0], found[1]


async def add_member(
    session: AsyncSession, user: User, tenant_id: str, role: Role, *, source: str = LOCAL
) -> Membership:
    """The caller has made sure that the person is no member yet."""
    membership = Membership(
        id=create_id("member"),
        tenant_id=tenant_id,
        user_id=user.id,
        role=role,
        source=source,
        created_at=now(),
    )
    repository = UserRepository(session)
    repository.add(membership)
    await repository.flush()
    return membership


async def set_role(
    session: AsyncSession, owner: Owner, allowed: Collection[Permission], user_id: str, role: str
) -> tuple[Membership, User]:
    """The member's sessions for this tenant are closed where the role is another one."""
    new_role = check_role(role, allowed)
    membership, user = await get_member(session, owner, user_id)
    check_role(membership.role, allowed)
    if membership.role != new_role:
        await change_role(session, membership, new_role)
    return membership, user


async def change_role(session: AsyncSession, membership: Membership, role: Role) -> None:
    """ConflictError where the tenant would be left without anybody to administer it."""
    if membership.role == "tenant-admin":
        await _check_not_the_last(session, membership)
    membership.role = role
    await UserRepository(session).flush()
    await SessionRepository(session).close_all_in(membership.user_id, membership.tenant_id)


async def remove_member(
    session: AsyncSession, owner: Owner, allowed: Collection[Permission], user_id: str
) -> tuple[Membership, User]:
    """The account stays: it may belong to other tenants too."""
    membership, user = await get_member(session, owner, user_id)
    check_role(membership.role, allowed)
    if membership.role == "tenant-admin":
        await _check_not_the_last(session, membership)
    repository = UserRepository(session)
    await repository.delete(membership)
    await repository.flush()
    await SessionRepository(session).close_all_in(user_id, owner.tenant_id)
    return membership, user


async def _check_not_the_last(session: AsyncSession, membership: Membership) -> None:
    admins = await UserRepository(session).lock_admins(membership)
    if all(admin.id == membership.id for admin in admins):
        raise ConflictError("This is the tenant's last administrator; make another one first.")
