"""Queries on merged adapters: a tenant's are the versions of one adapter that has no name to call.

A version's `source` says what was merged; it is found by the derived digest in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.scope import Owner, scoped
from weft.registry.models import Adapter, AdapterVersion, VersionState
from weft.registry.names import MERGED_NAME


class MergedRepository:
    """One tenant's rows in one session."""

    def __init__(self, session: AsyncSession, owner: Owner) -> None:
        self._session, self._owner = session, owner

    async def find(self, derived_digest: str, base_digest: str) -> AdapterVersion | None:
        """The one of this recipe for this base, if it can be called."""
        statement = _ready(self._owner).where(
            AdapterVersion.base_digest == base_digest,
            AdapterVersion.source["derived_digest"].as_string() == derived_digest,
        )
        return await self._session.scalar(statement.limit(1))

    async def list_ready(self) -> Sequence[AdapterVersion]:
        """The oldest first."""
        statement = _ready(self._owner).order_by(AdapterVersion.number)
        return (await self._session.scalars(statement)).all()


def _ready(owner: Owner) -> Select[AdapterVersion]:
    statement = (
        select(AdapterVersion)
        .join(Adapter, Adapter.id == AdapterVersion.adapter_id)
        .where(
            Adapter.name == MERGED_NAME,
            Adapter.deleted_at.is_(None),
            AdapterVersion.state == VersionState.READY,
        )
    )
    return scoped(statement, owner)
