"""The one place where "whose rows" becomes SQL.

Every ORM statement says on its face whether it is `scoped` to an owner or `unscoped` with a reason;
`Database` refuses to run one that says neither. Knows no keys and no HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from sqlalchemy import BindParameter, bindparam, or_
from sqlalchemy.orm import ORMExecuteState, with_loader_criteria
from sqlalchemy.sql.base import Executable

from weft.db.base import TenantOwned

StatementT = TypeVar("StatementT", bound=Executable)
_MARK = "weft_scope"
# the parameter that names the tenant of a statement that is run for many
TENANT_PARAMETER = "scope_tenant_id"


class Owner(Protocol):
    """Whoever acts for exactly one tenant: a principal, or the operator naming a tenant."""

    @property
    def tenant_id(self) -> str:
        """The tenant."""


@dataclass(frozen=True, slots=True)
class TenantOwner:
    """The operator acting on a tenant it named, or the platform acting for that tenant."""

    tenant_id: str


def scoped(statement: StatementT, owner: Owner) -> StatementT:
    """`statement` (select, update or delete), reaching only rows of the owner's tenant."""
    tenant_id = owner.tenant_id
    criteria = with_loader_criteria(
        TenantOwned, lambda cls: cls.tenant_id == tenant_id, include_aliases=True
    )
    return statement.options(criteria).execution_options(**{_MARK: tenant_id})


def scoped_or_shared(statement: StatementT, owner: Owner) -> StatementT:
    """`statement`, reaching the owner's rows and those that belong to no tenant and hold for all.

    Only tables whose `tenant_id` may be null have any of the second kind.
    """
    tenant_id = owner.tenant_id
    criteria = with_loader_criteria(
        TenantOwned,
        lambda cls: or_(cls.tenant_id == tenant_id, cls.tenant_id.is_(None)),
        include_aliases=True,
    )
    return statement.options(criteria).execution_options(**{_MARK: tenant_id})


def scoped_by_parameter(statement: StatementT) -> StatementT:
    """`statement`, reaching only rows of the tenant that `TENANT_PARAMETER` names at each run."""
    tenant_id: BindParameter[str] = bindparam(TENANT_PARAMETER)
    criteria = with_loader_criteria(
        TenantOwned, lambda cls: cls.tenant_id == tenant_id, include_aliases=True
    )
    return statement.options(criteria).execution_options(**{_MARK: TENANT_PARAMETER})


def scoped_or_shared_by_parameter(statement: StatementT) -> StatementT:
    """The same, with the rows that belong to no tenant and hold for all."""
    tenant_id: BindParameter[str] = bindparam(TENANT_PARAMETER)
    criteria = with_loader_criteria(
        TenantOwned,
        lambda cls: or_(cls.tenant_id == tenant_id, cls.tenant_id.is_(None)),
        include_aliases=True,
    )
    return statement.options(criteria).execution_options(**{_MARK: TENANT_PARAMETER})


def unscoped(statement: StatementT, reason: str) -> StatementT:
    """`statement` across all tenants. `reason` says why that is right."""
    if not reason:
        raise ValueError("an unscoped statement needs a reason")
    return statement.execution_options(**{_MARK: f"unscoped: {reason}"})


def refuse_unmarked(state: ORMExecuteState) -> None:
    """Session hook: a statement without a scope is a bug that must never reach the database."""
    if state.is_relationship_load or state.is_column_load or state.is_insert:
        return
    if _MARK not in state.execution_options:
        raise AssertionError(f"a statement without a tenant scope: {state.statement}")


def refuse_without_mark(statement: Executable) -> None:
    """The same, of a statement that is no session's."""
    if _MARK not in statement.get_execution_options():
        raise AssertionError(f"a statement without a tenant scope: {statement}")
