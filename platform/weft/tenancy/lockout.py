"""How long an account or an address must wait after failures to sign in. Pure numbers.

Waiting grows with each failure instead of closing the account: whoever knows an address can make
its owner wait, at most `max_wait_s`, but cannot lock them out for good.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LockoutPolicy:
    """The first `num_free` failures cost nothing; each later one doubles the wait. All is
    forgotten `forget_s` after the last."""

    num_free: int
    first_wait_s: int
    max_wait_s: int
    forget_s: int

    def wait_s(self, num_failures: int) -> int:
        """Seconds until the next attempt after so many failures."""
        num_over = num_failures - self.num_free
        if num_over < 0:
            return 0
        # capped before as well: no number of 10,000 bits is made
        return min(self.max_wait_s, self.first_wait_s << min(num_over, 32))


ACCOUNT = LockoutPolicy(num_free=5, first_wait_s=2, max_wait_s=900, forget_s=3600)
# many people may sit behind one address
ADDRESS = LockoutPolicy(num_free=30, first_wait_s=2, max_wait_s=900, forget_s=3600)


def account_key(email: str, secret: bytes) -> str:
    """The key of an account's row, the same whether or not the account exists."""
    return _key("account", email, secret)


def address_key(ip_address: str, secret: bytes) -> str:
    """The key of an address's row. An IPv6 network counts as one: its owner has 2**64 addresses."""
    try:
        address = ipaddress.ip_address(ip_address)
    except ValueError:  # no network address: a Unix socket, a test's client
        return _key("address", ip_address, secret)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return _key("address", str(address.ipv4_mapped), secret)
        network = ipaddress.ip_network((address, 64), strict=False)
        return _key("address", str(network), secret)
    return _key("address", str(address), secret)


def _key(kind: str, text: str, secret: bytes) -> str:
    # people type passwords into the wrong field: nothing readable is kept
    return hmac.new(secret, f"{kind}:{text}".encode(), hashlib.sha256).hexdigest()
