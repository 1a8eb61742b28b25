"""Who changes something, as the audit trail remembers it. A value only: knows no keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ActorKind = Literal["operator", "admin_key", "api_key", "session", "system"]


@dataclass(frozen=True, slots=True)
class Actor:
    """`id` is the public part of a key, a user's id, or what part of the platform acts by itself.

    `tenant_id`: the tenant that it belongs to, None for the operator and the platform. `ip` and
    `user_agent` are of the request that it came by.
    """

    kind: ActorKind
    id: str
    tenant_id: str | None = None
    ip: str | None = None
    user_agent: str | None = None


SYSTEM = Actor("system", "weft")
