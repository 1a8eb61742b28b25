"""Who acts: a tenant's key, or the operator. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Scope = Literal["inference", "adapters:read", "adapters:write", "usage:read"]
ALL_SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True, slots=True)
class Principal:
    """A tenant's key and what it may do."""

    tenant_id: str
    project_id: str
    key_id: str
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Operator:
    """Whoever runs the platform: manages tenants and keys, sees no tenant's models."""

    key_id: str
