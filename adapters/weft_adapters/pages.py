"""How rank rows become pages: what the pool allocates and what a report says it will cost."""

from __future__ import annotations

PAGE_ROWS = 8


def padded_rank(rank: int) -> int:
    """The rank rows of whole pages; the rows past `rank` are zeros."""
    return -(-rank // PAGE_ROWS) * PAGE_ROWS
