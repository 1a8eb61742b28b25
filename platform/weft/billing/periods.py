"""Billing periods: the months of UTC. Pure: whether one is closed is told by its row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

HOUR_S = 3600
# usage that is told later than this after a month's end is billed with a later month
GRACE_S = 48 * HOUR_S

_NAME = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True, order=True)
class Month:
    """A month of UTC, from its first second up to the next month's. Its name is `2026-11`."""

    year: int
    month: int

    @classmethod
    def parse(cls, name: str) -> Month:
        """ValueError unless it is a name as `str` gives it, from 1970 on."""
        found = _NAME.fullmatch(name)
        if found is None or int(found[1]) < 1970 or not found[0].isascii():
            raise ValueError(f"a billing period is a month such as 2026-11, not {name[:40]!r}")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def at(cls, time_s: int) -> Month:
        """The month that the second is in."""
        day = datetime.fromtimestamp(time_s, UTC)
        return cls(day.year, day.month)

    @property
    def start_at(self) -> int:
        """Its first second, in Unix seconds."""
        return int(datetime(self.year, self.month, 1, tzinfo=UTC).timestamp())

    @property
    def end_at(self) -> int:
        """The first second that is no longer in it."""
        return self.next.start_at

    @property
    def next(self) -> Month:
        return Month(self.year + self.month // 12, self.month % 12 + 1)

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.month:02d}"
