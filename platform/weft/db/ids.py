"""Ids that sort by the time they were made, and the clock they use."""

from __future__ import annotations

import secrets
import time


def create_id(prefix: str) -> str:
    """`<prefix>_` + 48 bits of milliseconds + 80 random bits, in hex."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def now() -> int:
    """Unix seconds."""
    return int(time.time())


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000
