"""What every table shares. Knows no table of its own."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import BigInteger, ForeignKey, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Times are Unix seconds (`*_at`) or milliseconds (`*_at_ms`); relations load by hand only."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map: ClassVar[dict[Any, Any]] = {int: BigInteger}


class TenantOwned:
    """A row that belongs to one tenant. Statements on it pass through `weft.db.scope`."""

    @declared_attr
    def tenant_id(cls) -> Mapped[str]:
        return mapped_column(String(64), ForeignKey("tenants.id"), index=True)


class PlatformOwned:
    """A row that belongs to no tenant; the table's docstring says why."""
