"""Whose word counts for where a request came from: that of the operator's own proxies.

Anybody can send `X-Forwarded-For`; each proxy writes to the right of what was there the address
that it saw. So the list is read from the right, for as long as whoever wrote an entry is trusted:
what is left of that was said by a stranger.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_FORWARDED_FOR = b"x-forwarded-for"
# proxies in a row; whoever sends more has written them
_MAX_HOPS = 16
# an IPv6 address with its port, in brackets
_MAX_CHARS = 64


class TrustedProxies:
    """`networks`: those that the operator's proxies send from. ValueError for what is none."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = tuple(ipaddress.ip_network(network) for network in networks)

    def find_client(self, peer: str, forwarded_for: Sequence[str]) -> str:
        """The nearest address that is no proxy's: `peer` sent the headers `forwarded_for`.

        Where a trusted proxy passed on what is no address, that proxy's own.
        """
        client = _try_parse(peer)
        if client is None or not self._trusts(client):
            return peer
        entries = ",".join(forwarded_for).rsplit(",", _MAX_HOPS)[-_MAX_HOPS:]
        for entry in reversed(entries):
            seen = _try_parse(entry)
            if seen is None:
                break
            client = seen
            if not self._trusts(seen):
                break
        return str(client)

    def _trusts(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)


def _try_parse(entry: str) -> _Address | None:
    """An address, which some proxies write with a port."""
    text = entry.strip()[:_MAX_CHARS]
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


class ForwardedClients:
    """Pure ASGI: tells the application the client's address for its proxy's, with port 0."""

    def __init__(self, app: ASGIApp, proxies: TrustedProxies) -> None:
        self._app, self._proxies = app, proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope.get("client") is not None:
            headers = [
                value.decode("latin-1")
                for name, value in scope["headers"]
                if name == _FORWARDED_FOR
            ]
            if headers:
                peer = scope["client"][0]
                scope["client"] = (self._proxies.find_client(peer, headers), 0)
        await self._app(scope, receive, send)
