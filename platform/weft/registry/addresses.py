"""Which hosts the server may connect to on a tenant's behalf, and at which addresses.

A name is checked, resolved once, and its addresses are checked; the connection then goes to the
address that was checked, so that a second answer of the name server changes nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from weft.registry.sources import SourceError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
# what carries an IPv4 address inside, or is not the public part of IPv6, lies outside of these
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_SIX_TO_FOUR = ipaddress.ip_network("2002::/16")
HTTPS_PORT = 443


async def _resolve(host: str, port: int) -> Sequence[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(sockaddr[0]) for _, _, _, _, sockaddr in found]


@dataclass(frozen=True, slots=True)
class HostRules:
    """`hosts`: "name", "*.name" for all below it, or either with ":port" where that is not 443.
    `networks` may be connected to although they are not public."""

    hosts: tuple[str, ...]
    networks: tuple[IPNetwork, ...] = ()
    resolve: Callable[[str, int], Awaitable[Sequence[str]]] = _resolve

    def allows(self, host: str, port: int) -> bool:
        """An address in place of a name is on no list."""
        name = host.lower()
        for rule in self.hosts:
            allowed, _, allowed_port = rule.partition(":")
            if port != int(allowed_port or HTTPS_PORT):
                continue
            if name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:])):
                return True
        return False

    def check(self, host: str, port: int) -> None:
        if not self.allows(host, port):
            raise SourceError(
                "source_not_allowed", f"The host '{host[:255]}' is not one to import from."
            )

    async def addresses(self, host: str, port: int) -> list[str]:
        """Where to connect to; SourceError for a host that is not allowed or not public."""
        self.check(host, port)
        try:
            found = await self.resolve(host, port)
        except OSError as error:
            raise SourceError(
                "source_unavailable", f"The host '{host[:255]}' was not found."
            ) from error
        addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
        # one that is not public among others is an attempt, not an accident
        if not addresses or not all(self._may_connect(address) for address in addresses):
            raise SourceError(
                "source_not_allowed", f"The host '{host[:255]}' has no public address."
            )
        return [str(address) for address in addresses]

    def _may_connect(self, address: IPAddress) -> bool:
        return is_public(address) or any(address in network for network in self.networks)


def is_public(address: IPAddress) -> bool:
    """An address of the public internet, whichever way it is written."""
    if address.is_multicast or not address.is_global:
        return False
    if address.version == 4:
        return True
    return address in _GLOBAL_UNICAST and address not in _SIX_TO_FOUR
