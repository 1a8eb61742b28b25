"""What a key may do at most: what whoever made it may do now.

A key never has more than its maker, when it is made and whenever it is used. Makers that are
keys were made by others in turn, up to the data folder's operator key, which may do everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import SYSTEM, Actor
from weft.db.scope import TenantOwner
from weft.errors import PermissionDeniedError
from weft.tenancy.acting import actor_of
from weft.tenancy.key_repository import AnyKey, KeyRepository
from weft.tenancy.models import AdminKey, ApiKey, OperatorKey
from weft.tenancy.principal import ALL_PERMISSIONS, Operator, Permission, TenantAdmin
from weft.tenancy.roles import PERMISSIONS, Role
from weft.tenancy.user_repository import UserRepository

# keys that make keys that make keys
MAX_MAKERS = 8

# None is the data folder's owner, at the command line
Maker = TenantAdmin | Operator | None


def audited(maker: Maker) -> Actor:
    """Whom the audit trail names."""
    return SYSTEM if maker is None else actor_of(maker)


def permissions_of(maker: Maker) -> frozenset[Permission]:
    """All, for the data folder's owner."""
    return ALL_PERMISSIONS if maker is None else maker.permissions


async def authority_of_makers(session: AsyncSession, row: AnyKey) -> frozenset[Permission]:
    """The permissions that the makers behind a key have all of them.

    A key that was revoked or has expired bounds those that it made by what it had; it takes none
    away. A person who is no member any more, or may not sign in, leaves them nothing.
    """
    allowed, next_row = ALL_PERMISSIONS, row
    for _ in range(MAX_MAKERS):
        maker = await _maker_of(session, next_row)
        if maker is None:
            return allowed
        allowed &= maker.permissions
        if maker.key is None:
            return allowed
        next_row = maker.key
    return frozenset()  # longer than any that `check_depth` lets be made


async def check_depth(session: AsyncSession, row: AnyKey) -> None:
    """PermissionDeniedError for a new key that has too many makers behind it."""
    next_row = row
    for _ in range(MAX_MAKERS):
        maker = await _maker_of(session, next_row)
        if maker is None or maker.key is None:
            return
        next_row = maker.key
    raise PermissionDeniedError(
        f"Keys made by keys end after {MAX_MAKERS}: use one that was made earlier."
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """What a maker may do now; `key` if it is one, which has a maker itself."""

    permissions: frozenset[Permission]
    key: AdminKey | OperatorKey | None = None


async def _maker_of(session: AsyncSession, row: AnyKey) -> _Found | None:
    """None for a key made on the command line, or by the operator key of the data folder."""
    if row.maker_id is None:
        return None
    if row.maker_kind == "session":
        return _Found(await _permissions_of_person(session, row, row.maker_id))
    repository = KeyRepository(session)
    key: AdminKey | OperatorKey | None
    if row.maker_kind == "admin_key":
        assert isinstance(row, ApiKey | AdminKey), "operators' keys are made by operators"
        key = await repository.find_admin_key(row.maker_id, TenantOwner(row.tenant_id))
    else:
        key = await repository.find_operator_key(row.maker_id)
    return None if key is None else _Found(frozenset(key.permissions), key)


async def _permissions_of_person(
    session: AsyncSession, row: AnyKey, user_id: str
) -> frozenset[Permission]:
    """As a member of the key's tenant, or as an operator."""
    repository = UserRepository(session)
    user = await repository.find_user(user_id)
    if user is None or user.disabled_at is not None:
        return frozenset()
    if user.is_operator:
        return PERMISSIONS["operator"]
    if isinstance(row, OperatorKey):
        return frozenset()
    membership = await repository.find_membership(user_id, TenantOwner(row.tenant_id))
    return frozenset() if membership is None else PERMISSIONS[cast(Role, membership.role)]
