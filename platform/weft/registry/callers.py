"""Who may call the routes of adapters: project keys by scope, administrators by permission."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from weft.tenancy.auth import require_any
from weft.tenancy.principal import Principal, TenantAdmin

Caller = Principal | TenantAdmin
Reader = Annotated[Caller, Depends(require_any(scope="adapters:read", permission="adapters:read"))]
Writer = Annotated[
    Caller, Depends(require_any(scope="adapters:write", permission="adapters:write"))
]
