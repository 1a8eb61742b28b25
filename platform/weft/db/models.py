"""The one table of the database layer itself: leases."""

from __future__ import annotations

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from weft.db.base import Base, PlatformOwned


class Lease(PlatformOwned, Base):
    """Who does a job, and until when if it does not say more. The processes share it."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(String(128))
    expires_at_ms: Mapped[int]
