"""Usage and costs in buckets of time, as OpenAI's reports have them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from weft.errors import InvalidRequestError

BucketWidth: TypeAlias = Literal["1m", "1h", "1d"]
WIDTHS_S: dict[BucketWidth, int] = {"1m": 60, "1h": 3600, "1d": 86_400}
# (buckets of a page where none are asked for, the most of them)
USAGE_LIMITS: dict[BucketWidth, tuple[int, int]] = {
    "1m": (60, 1440),
    "1h": (24, 168),
    "1d": (7, 31),
}
COST_LIMITS = (7, 180)
_PAGE = "page_"


@dataclass(frozen=True, slots=True)
class Span:
    """The buckets of one page: each `width_s` long, from a multiple of that on."""

    start_at: int
    end_at: int
    width_s: int
    next_page: str | None

    @property
    def bucket_starts(self) -> Iterator[int]:
        yield from range(self.start_at, self.end_at, self.width_s)


def create_span(start_at: int, end_at: int, width_s: int, limit: int, page: str | None) -> Span:
    """The page's part of [start, end), widened to whole buckets.

    InvalidRequestError for an end before the start, and for a page that no answer has named.
    """
    if end_at <= start_at:
        raise InvalidRequestError("end_time must be after start_time.", param="end_time")
    first = start_at - start_at % width_s
    if page is not None:
        first = _parse_page(page, first, end_at, width_s)
    last = min(first + limit * width_s, end_at + -end_at % width_s)
    return Span(first, last, width_s, f"{_PAGE}{last}" if last < end_at else None)


def _parse_page(page: str, first: int, end_at: int, width_s: int) -> int:
    digits = page.removeprefix(_PAGE)
    if page.startswith(_PAGE) and digits.isascii() and digits.isdigit() and len(digits) < 15:
        start_at = int(digits)
        if first <= start_at < end_at and start_at % width_s == 0:
            return start_at
    raise InvalidRequestError("The page is not one of this report's.", param="page")


def check_limit(limit: int | None, default: int, most: int) -> int:
    """InvalidRequestError for more buckets than a page has."""
    if limit is None:
        return default
    if not 1 <= limit <= most:
        raise InvalidRequestError(f"limit must be between 1 and {most}.", param="limit")
    return limit
