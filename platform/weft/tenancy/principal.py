"""Who acts: a project's key, whoever administers a tenant, or an operator. Values only.

A `Principal` has scopes and calls models; a `TenantAdmin` and an `Operator` have permissions and
administer. Neither can do the other's work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

Scope = Literal["inference", "adapters:read", "adapters:write", "usage:read"]
ALL_SCOPES: tuple[Scope, ...] = get_args(Scope)

Permission = Literal[
    "projects:read",
    "projects:write",
    "keys:read",
    "keys:write",
    "admin_keys:read",
    "admin_keys:write",
    "members:read",
    "members:write",
    "limits:read",
    "limits:write",
    "usage:read",
    "billing:read",
    "billing:write",
    "audit:read",
    "adapters:read",
    "adapters:write",
    "tenants:read",
    "tenants:write",
    "platform:read",
    "platform:write",
]
ALL_PERMISSIONS: frozenset[Permission] = frozenset(get_args(Permission))
# about the platform: no tenant's administrator has these
PLATFORM_PERMISSIONS: frozenset[Permission] = frozenset(
    {"tenants:read", "tenants:write", "platform:read", "platform:write"}
)
TENANT_PERMISSIONS = ALL_PERMISSIONS - PLATFORM_PERMISSIONS


@dataclass(frozen=True, slots=True)
class Client:
    """Where a request came from. Told to the audit log, never used to decide."""

    address: str | None = None
    user_agent: str | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """A project's key and what it may do. `include_obfuscation`: the tenant's streams are padded
    where a request does not say."""

    tenant_id: str
    project_id: str
    key_id: str
    scopes: frozenset[str]
    client: Client = field(default=Client(), compare=False)
    include_obfuscation: bool = False

    @property
    def caller(self) -> str:
        """A text that is of nobody else, as of the others who act."""
        return f"api_key:{self.key_id}"


@dataclass(frozen=True, slots=True)
class TenantAdmin:
    """Whoever administers one tenant: an admin key, or a person who is signed in.

    `id` is the key's id or the user's.
    """

    tenant_id: str
    permissions: frozenset[Permission]
    kind: Literal["admin_key", "session"]
    id: str
    client: Client = field(default=Client(), compare=False)

    @property
    def caller(self) -> str:
        return f"{self.kind}:{self.id}:{self.tenant_id}"


@dataclass(frozen=True, slots=True)
class Operator:
    """Whoever runs the platform: manages tenants and keys, sees no tenant's models.

    `id` is the key's id or the user's.
    """

    id: str
    permissions: frozenset[Permission] = ALL_PERMISSIONS
    kind: Literal["operator_key", "session"] = "operator_key"
    client: Client = field(default=Client(), compare=False)

    @property
    def caller(self) -> str:
        return f"{self.kind}:{self.id}"


Identity: TypeAlias = Principal | TenantAdmin | Operator
