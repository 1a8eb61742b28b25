"""The table of answers that are given again."""

from __future__ import annotations

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from weft.db.base import Base, PlatformOwned


class KeptAnswer(PlatformOwned, Base):
    """What a request with an `Idempotency-Key` was answered.

    Of nobody that the row could tell: `id` is a keyed hash of the caller, the route and the key,
    and `sealed` opens for a request that has all three. Operators have no tenant.
    """

    __tablename__ = "kept_answers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    sealed: Mapped[str] = mapped_column(Text)
    created_at: Mapped[int] = mapped_column(index=True)
