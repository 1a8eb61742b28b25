"""Queries on limits: a tenant's own, and the bases' that all tenants share."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.scope import Owner, scoped_or_shared
from weft.limits.models import Limit
from weft.limits.subjects import Subject


class LimitRepository:
    """Rows of one session that hold for one tenant."""

    def __init__(self, session: AsyncSession, owner: Owner) -> None:
        self._session, self._owner = session, owner

    async def list_of(self, subjects: Sequence[Subject]) -> Sequence[Limit]:
        """The subjects' limits, for all models and for single ones."""
        is_wanted = or_(
            *(
                and_(Limit.subject_kind == subject.kind, Limit.subject_id == subject.id)
                for subject in subjects
            )
        )
        statement = select(Limit).where(is_wanted)
        return (await self._session.scalars(scoped_or_shared(statement, self._owner))).all()
