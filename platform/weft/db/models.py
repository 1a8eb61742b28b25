"""The tables of the database layer itself: leases, and marks of secrets."""

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


class SecretMark(PlatformOwned, Base):
    """A hash by which the installation's secret is known again: its keys were hashed with it."""

    __tablename__ = "secret_marks"

    purpose: Mapped[str] = mapped_column(String(32), primary_key=True)
    mark: Mapped[str] = mapped_column(String(64))
