"""How many bad keys an address may send: a burst, then a few each second, then 429.

Knows addresses and counts only. A right key is never held up by this.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from weft.errors import RateLimitError

BURST = 50
PER_S = 5.0
MAX_ADDRESSES = 10_000


class BadKeys:
    """A bucket of tokens per address; a bad key takes one. The least recent addresses go first."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        burst: int = BURST,
        per_s: float = PER_S,
        max_addresses: int = MAX_ADDRESSES,
    ) -> None:
        self._clock = clock
        self._burst = burst
        self._per_s = per_s
        self._max_addresses = max_addresses
        # by network: (tokens, as of)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def check(self, address: str | None) -> None:
        """RateLimitError for an address that has sent too many."""
        tokens = self._tokens(network_of(address))
        if tokens < 1:
            raise RateLimitError(
                "Too many requests with an incorrect API key came from your address.",
                retry_after_s=max(1, math.ceil((1 - tokens) / self._per_s)),
            )

    def note(self, address: str | None) -> None:
        """This address has sent one more."""
        network = network_of(address)
        self._buckets[network] = (max(0.0, self._tokens(network) - 1), self._clock())
        self._buckets.move_to_end(network)
        if len(self._buckets) > self._max_addresses:
            self._buckets.popitem(last=False)

    def _tokens(self, network: str) -> float:
        tokens, as_of_s = self._buckets.get(network, (float(self._burst), 0.0))
        return min(self._burst, tokens + (self._clock() - as_of_s) * self._per_s)


def network_of(address: str | None) -> str:
    """What one sender has at least: an IPv4 address, or the /64 that an IPv6 address is in."""
    if address is None:
        return ""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
