"""Making, changing, rotating and revoking keys. Each function works in the caller's transaction.

Whoever acts never hands out more than it may do itself, nor gets hold of it by a new secret.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import Target, record
from weft.db.ids import now
from weft.db.scope import Owner
from weft.errors import ConflictError, InvalidRequestError, NotFoundError
from weft.tenancy.authority import Maker, audited, check_depth, permissions_of
from weft.tenancy.grants import check_hand_over, check_scopes, checked_permissions
from weft.tenancy.key_repository import KeyRepository
from weft.tenancy.keys import KeyKind, KeyText, create_key, hash_secret
from weft.tenancy.models import AdminKey, ApiKey, OperatorKey, Project
from weft.tenancy.principal import ALL_PERMISSIONS, TENANT_PERMISSIONS
from weft.tenancy.roles import grantable_scopes

DEFAULT_GRACE_S = 24 * 3600
MAX_GRACE_S = 30 * 24 * 3600

AnyKey: TypeAlias = ApiKey | AdminKey | OperatorKey
KeyT = TypeVar("KeyT", bound=ApiKey | AdminKey | OperatorKey)


@dataclass(frozen=True, slots=True)
class NewKey(Generic[KeyT]):
    """A key with a new secret. `text` is shown once and stored nowhere."""

    row: KeyT
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """What to change of a key; None leaves a thing as it is.

    `grants` are scopes of a project's key, permissions of the others.
    """

    name: str | None = None
    expires_at: int | None = None
    is_blocked: bool | None = None
    grants: Collection[str] | None = None


async def get_project_key(
    session: AsyncSession, owner: Owner, key_id: str, project_id: str | None = None
) -> ApiKey:
    """NotFoundError for what does not exist and for another tenant's or project's alike."""
    row = await KeyRepository(session).find_project_key(key_id, owner, project_id)
    return _found(row, key_id)


async def get_admin_key(session: AsyncSession, owner: Owner, key_id: str) -> AdminKey:
    return _found(await KeyRepository(session).find_admin_key(key_id, owner), key_id)


async def get_tenant_key(session: AsyncSession, owner: Owner, key_id: str) -> ApiKey | AdminKey:
    """Of either kind."""
    repository = KeyRepository(session)
    project_key = await repository.find_project_key(key_id, owner)
    return project_key or _found(await repository.find_admin_key(key_id, owner), key_id)


async def get_operator_key(session: AsyncSession, key_id: str) -> OperatorKey:
    return _found(await KeyRepository(session).find_operator_key(key_id), key_id)


def _found(row: KeyT | None, key_id: str) -> KeyT:
    if row is None:
        raise NotFoundError(f"No key '{key_id}' exists.")
    return row


async def create_project_key(
    session: AsyncSession,
    project: Project,
    pepper: bytes,
    maker: Maker,
    *,
    name: str = "",
    scopes: Collection[str] | None = None,
    expires_at: int | None = None,
) -> NewKey[ApiKey]:
    """A key of the project; by default with all scopes that its maker may give."""
    if project.archived_at is not None:
        raise ConflictError("The project is archived: it takes no new keys.")
    if scopes is None:
        scopes = grantable_scopes(permissions_of(maker))
    check_scopes(scopes, maker)
    key = create_key("live")
    row = ApiKey(
        tenant_id=project.tenant_id,
        project_id=project.id,
        scopes=sorted(set(scopes)),
        **_columns(key, pepper, maker, name, expires_at),
    )
    return await _add(session, row, key, maker)


async def create_admin_key(
    session: AsyncSession,
    tenant_id: str,
    pepper: bytes,
    maker: Maker,
    *,
    name: str = "",
    permissions: Collection[str] | None = None,
    expires_at: int | None = None,
) -> NewKey[AdminKey]:
    """A key that administers the tenant; by default it may do all that its maker may."""
    may = permissions_of(maker) & TENANT_PERMISSIONS
    key = create_key("admin")
    row = AdminKey(
        tenant_id=tenant_id,
        permissions=checked_permissions(permissions, may, TENANT_PERMISSIONS),
        **_columns(key, pepper, maker, name, expires_at),
    )
    return await _add(session, row, key, maker)


async def create_operator_key(
    session: AsyncSession,
    pepper: bytes,
    maker: Maker,
    *,
    name: str = "",
    permissions: Collection[str] | None = None,
    expires_at: int | None = None,
) -> NewKey[OperatorKey]:
    """An operator's key; by default it may do all that its maker may."""
    key = create_key("operator")
    row = OperatorKey(
        permissions=checked_permissions(permissions, permissions_of(maker), ALL_PERMISSIONS),
        **_columns(key, pepper, maker, name, expires_at),
    )
    return await _add(session, row, key, maker)


async def _add(session: AsyncSession, row: KeyT, key: KeyText, maker: Maker) -> NewKey[KeyT]:
    await check_depth(session, row)
    await KeyRepository(session).add(row)
    grants: dict[str, object] = {_grants_name(row): _grants(row)}
    told = {"name": row.name, "expires_at": row.expires_at} | grants
    await _record(session, maker, "created", row, told)
    return NewKey(row, str(key))


def _columns(
    key: KeyText, pepper: bytes, maker: Maker, name: str, expires_at: int | None
) -> dict[str, Any]:
    _check_expiry(expires_at)
    return {
        "id": key.key_id,
        "name": name,
        "secret_hmac": hash_secret(key.secret, pepper),
        "last4": key.last4,
        "created_at": now(),
        "expires_at": expires_at,
        "maker_kind": None if maker is None else maker.kind,
        "maker_id": None if maker is None else maker.id,
    }


async def rotate(
    session: AsyncSession,
    row: KeyT,
    pepper: bytes,
    actor: Maker,
    grace_s: int = DEFAULT_GRACE_S,
) -> NewKey[KeyT]:
    """A new secret on the same id; the former one stays right for `grace_s`, and none before it."""
    if row.revoked_at is not None:
        raise ConflictError("The key is revoked: make a new one.")
    if not 0 <= grace_s <= MAX_GRACE_S:
        raise InvalidRequestError(
            f"The grace is between 0 and {MAX_GRACE_S} seconds.", param="grace_s"
        )
    check_hand_over(row, actor)
    key = create_key(kind_of(row), row.id)
    row.previous_hmac, row.previous_expires_at = None, None
    if grace_s > 0:
        row.previous_hmac, row.previous_expires_at = row.secret_hmac, now() + grace_s
    row.secret_hmac, row.last4 = hash_secret(key.secret, pepper), key.last4
    await _record(session, actor, "rotated", row, {"grace_s": grace_s})
    return NewKey(row, str(key))


async def change(session: AsyncSession, row: AnyKey, actor: Maker, wanted: KeyChange) -> None:
    """All of it or, with an error, nothing. A revoked key stays as it is: ConflictError."""
    if row.revoked_at is not None:
        raise ConflictError("The key is revoked: it cannot be changed.")
    told: dict[str, object] = {}
    if wanted.grants is not None:
        _set_grants(row, actor, wanted.grants)
        told[_grants_name(row)] = _grants(row)
    if wanted.expires_at is not None:
        _check_expiry(wanted.expires_at)
        check_hand_over(row, actor)
        row.expires_at = told["expires_at"] = wanted.expires_at
    if wanted.is_blocked is not None:
        if not wanted.is_blocked:
            check_hand_over(row, actor)
        row.blocked_at = (row.blocked_at or now()) if wanted.is_blocked else None
        told["is_blocked"] = wanted.is_blocked
    if wanted.name is not None:
        row.name = told["name"] = wanted.name
    if told:
        await _record(session, actor, "updated", row, told)


async def revoke(session: AsyncSession, row: AnyKey, actor: Maker) -> None:
    """Final and idempotent: the first revocation's time stays."""
    if row.revoked_at is None:
        row.revoked_at = now()
        await _record(session, actor, "deleted", row, {})


async def _record(
    session: AsyncSession, actor: Maker, what: str, row: AnyKey, changes: dict[str, object]
) -> None:
    await session.flush()
    noun = {"live": "api_key", "admin": "admin_api_key", "operator": "operator_key"}[kind_of(row)]
    tenant_id = None if isinstance(row, OperatorKey) else row.tenant_id
    target = Target(row.id, tenant_id)
    await record(session, audited(actor), f"{noun}.{what}", target, changes)


def _grants_name(row: AnyKey) -> str:
    return "scopes" if isinstance(row, ApiKey) else "permissions"


def _grants(row: AnyKey) -> list[str]:
    return list(row.scopes if isinstance(row, ApiKey) else row.permissions)


def _set_grants(row: AnyKey, actor: Maker, grants: Collection[str]) -> None:
    """What is new to the key must be the actor's to give."""
    if isinstance(row, ApiKey):
        check_scopes(grants, actor, has=frozenset(row.scopes))
        row.scopes = sorted(set(grants))
        return
    known = TENANT_PERMISSIONS if isinstance(row, AdminKey) else ALL_PERMISSIONS
    may = (permissions_of(actor) & known) | frozenset(row.permissions)
    row.permissions = checked_permissions(grants, may, known)


def kind_of(row: AnyKey) -> KeyKind:
    if isinstance(row, ApiKey):
        return "live"
    return "admin" if isinstance(row, AdminKey) else "operator"


def _check_expiry(expires_at: int | None) -> None:
    if expires_at is not None and expires_at <= now():
        raise InvalidRequestError("The key would have expired already.", param="expires_at")
