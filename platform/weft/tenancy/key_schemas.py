"""Keys on the wire, in OpenAI's shapes where it has them. A secret is shown once, as `value`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from weft.db.ids import now
from weft.db.lists import ListItem
from weft.errors import InvalidRequestError
from weft.tenancy.key_service import (
    DEFAULT_GRACE_S,
    MAX_GRACE_S,
    AnyKey,
    KeyChange,
    NewKey,
    kind_of,
)
from weft.tenancy.models import AdminKey, ApiKey, OperatorKey
from weft.tenancy.roles import ALL_ROLES, PERMISSIONS, Role
from weft.tenancy.schemas import Body

_MAX_TIME_S = 2**40
# a line of text: no control characters
Label = Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
Grants = Annotated[list[str], Field(max_length=64)]
Duration = Annotated[int, Field(gt=0, le=_MAX_TIME_S)]


class KeyCreate(Body):
    """Body of `POST /admin/v1/tenants/{id}/keys`; `expires_at` is in Unix seconds."""

    name: Label = ""
    scopes: Grants | None = None
    expires_at: int | None = Field(default=None, le=_MAX_TIME_S)


class ProjectKeyCreate(Body):
    """Body of `POST .../projects/{id}/api_keys`. No scopes: all that its maker may give."""

    name: Label = ""
    scopes: Grants | None = None
    expires_in_seconds: Duration | None = None


class PermissionKeyCreate(Body):
    """Body of `POST .../admin_api_keys` and `POST /admin/v1/operator_keys`.

    A role stands for its permissions; with neither the key may do all that its maker may.
    """

    name: Label
    role: Role | None = None
    permissions: Grants | None = None
    expires_in_seconds: Duration | None = None

    def granted(self) -> list[str] | None:
        """The permissions asked for."""
        return granted(self.role, self.permissions)


class _KeyUpdate(Body):
    name: Label | None = None
    expires_in_seconds: Duration | None = None
    is_blocked: bool | None = None

    def _to_change(self, grants: list[str] | None) -> KeyChange:
        return KeyChange(
            name=self.name,
            expires_at=expires_at(self.expires_in_seconds),
            is_blocked=self.is_blocked,
            grants=grants,
        )


class ProjectKeyUpdate(_KeyUpdate):
    """Body of `POST .../api_keys/{id}`: what is left out stays."""

    scopes: Grants | None = None

    def to_change(self) -> KeyChange:
        return self._to_change(self.scopes)


class PermissionKeyUpdate(_KeyUpdate):
    """Body of `POST .../admin_api_keys/{id}` and of operators' keys: what is left out stays."""

    permissions: Grants | None = None

    def to_change(self) -> KeyChange:
        return self._to_change(self.permissions)


class Rotate(Body):
    """Body of `...:rotate`: for how long the former secret stays right."""

    grace_s: int = Field(default=DEFAULT_GRACE_S, ge=0, le=MAX_GRACE_S)


def granted(role: str | None, permissions: list[str] | None) -> list[str] | None:
    """The permissions that are named; InvalidRequestError for both ways, or no such role."""
    if role is None:
        return permissions
    if permissions is not None:
        raise InvalidRequestError("Give a role or permissions, not both.", param="role")
    held = {str(name): names for name, names in PERMISSIONS.items()}.get(role)
    if held is None:
        raise InvalidRequestError(
            f"'{role}' is no role; roles are {', '.join(ALL_ROLES)}.", param="role"
        )
    return sorted(held)


def expires_at(seconds: int | None) -> int | None:
    """Unix seconds."""
    return None if seconds is None else now() + seconds


class Maker(BaseModel):
    """Who made a key, whose authority bounds it: an admin key, an operator key or a user's session.

    Both are None for a key made on the command line.
    """

    type: str | None
    id: str | None


class KeyObject(ListItem):
    """What keys of all kinds show. `previous_expires_at`: until when the secret before the last
    rotation stays right."""

    name: str
    redacted_value: str
    status: Literal["active", "blocked", "expired", "revoked"]
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None
    previous_expires_at: int | None
    made_by: Maker


class ServiceAccount(BaseModel):
    """Whom a project's key acts as: itself."""

    id: str
    name: str
    role: Literal["member"] = "member"
    created_at: int


class ProjectKeyOwner(BaseModel):
    """OpenAI's owner of a project's key."""

    type: Literal["service_account"] = "service_account"
    service_account: ServiceAccount


class ProjectKeyObject(KeyObject):
    """OpenAI's key of a project, with its scopes."""

    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    owner: ProjectKeyOwner
    owner_project_access: Literal["active"] = "active"
    tenant_id: str
    project_id: str
    scopes: list[str]


class NewProjectKeyObject(ProjectKeyObject):
    """With its secret: the only time that it is shown."""

    value: str


class AdminKeyObject(KeyObject):
    """OpenAI's admin key, with its permissions; `role` is the one that has just these."""

    object: Literal["organization.admin_api_key"] = "organization.admin_api_key"
    owner: Maker
    tenant_id: str
    role: Role | None
    permissions: list[str]


class NewAdminKeyObject(AdminKeyObject):
    """With its secret: the only time that it is shown."""

    value: str


class OperatorKeyObject(KeyObject):
    """An operator's key."""

    object: Literal["operator_key"] = "operator_key"
    role: Role | None
    permissions: list[str]


class NewOperatorKeyObject(OperatorKeyObject):
    """With its secret: the only time that it is shown."""

    value: str


def project_key_object(row: ApiKey) -> ProjectKeyObject:
    account = ServiceAccount(id=row.id, name=row.name, created_at=row.created_at)
    return ProjectKeyObject(
        **_shown(row),
        owner=ProjectKeyOwner(service_account=account),
        tenant_id=row.tenant_id,
        project_id=row.project_id,
        scopes=row.scopes,
    )


def new_project_key_object(key: NewKey[ApiKey]) -> NewProjectKeyObject:
    return NewProjectKeyObject(**dict(project_key_object(key.row)), value=key.text)


def admin_key_object(row: AdminKey) -> AdminKeyObject:
    return AdminKeyObject(
        **_shown(row),
        owner=_maker(row),
        tenant_id=row.tenant_id,
        role=_role(row),
        permissions=list(row.permissions),
    )


def new_admin_key_object(key: NewKey[AdminKey]) -> NewAdminKeyObject:
    return NewAdminKeyObject(**dict(admin_key_object(key.row)), value=key.text)


def operator_key_object(row: OperatorKey) -> OperatorKeyObject:
    return OperatorKeyObject(**_shown(row), role=_role(row), permissions=list(row.permissions))


def new_operator_key_object(key: NewKey[OperatorKey]) -> NewOperatorKeyObject:
    return NewOperatorKeyObject(**dict(operator_key_object(key.row)), value=key.text)


def _shown(row: AnyKey) -> dict[str, Any]:
    """`KeyObject`'s fields."""
    ends_at = row.previous_expires_at
    return {
        "id": row.id,
        "name": row.name,
        "redacted_value": f"weft_{kind_of(row)}_{row.id}_...{row.last4}",
        "status": _status(row),
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
        "last_used_at": row.last_used_at,
        "previous_expires_at": None if ends_at is None or ends_at <= now() else ends_at,
        "made_by": _maker(row),
    }


def _status(row: AnyKey) -> Literal["active", "blocked", "expired", "revoked"]:
    if row.revoked_at is not None:
        return "revoked"
    if row.expires_at is not None and row.expires_at <= now():
        return "expired"
    return "active" if row.blocked_at is None else "blocked"


def _maker(row: AnyKey) -> Maker:
    return Maker(type=row.maker_kind, id=row.maker_id)


def _role(row: AdminKey | OperatorKey) -> Role | None:
    held = frozenset(row.permissions)
    return next((role for role in ALL_ROLES if PERMISSIONS[role] == held), None)
