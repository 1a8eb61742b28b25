"""Roles: named sets of permissions, which people and keys are given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Literal, get_args

from weft.tenancy.principal import (
    ALL_PERMISSIONS,
    TENANT_PERMISSIONS,
    Permission,
    Scope,
)

Role = Literal["operator", "tenant-admin", "developer", "billing", "read-only"]
ALL_ROLES: tuple[Role, ...] = get_args(Role)
# "operator" is platform-wide; the others are had in a tenant
TENANT_ROLES: tuple[Role, ...] = tuple(role for role in ALL_ROLES if role != "operator")

PERMISSIONS: Mapping[Role, frozenset[Permission]] = MappingProxyType(
    {
        "operator": ALL_PERMISSIONS,
        "tenant-admin": TENANT_PERMISSIONS,
        "developer": frozenset[Permission](
            {
                "projects:read",
                "keys:read",
                "keys:write",
                "members:read",
                "limits:read",
                "usage:read",
                "adapters:read",
                "adapters:write",
            }
        ),
        "billing": frozenset[Permission](
            {
                "projects:read",
                "members:read",
                "limits:read",
                "usage:read",
                "billing:read",
                "billing:write",
            }
        ),
        "read-only": frozenset(
            permission for permission in TENANT_PERMISSIONS if permission.endswith(":read")
        ),
    }
)

# what a maker must be allowed itself to give a key this scope; administrators cannot call models,
# so that "inference" is what making keys is for
_NEEDED: Mapping[Scope, Permission] = MappingProxyType(
    {
        "inference": "keys:write",
        "adapters:read": "adapters:read",
        "adapters:write": "adapters:write",
        "usage:read": "usage:read",
    }
)


def grantable_scopes(permissions: Collection[Permission]) -> frozenset[Scope]:
    """The scopes that a project key may have whose maker has `permissions`."""
    return frozenset(scope for scope, needed in _NEEDED.items() if needed in permissions)
