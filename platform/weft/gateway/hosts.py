"""Which hosts a server answers for. Pure: knows the text of a header, and no DNS."""

from __future__ import annotations

import re
from collections.abc import Sequence

from weft.settings.sign_in import is_loopback

# a name, an IPv4 address or a bracketed IPv6 one, perhaps with a port: no path, no user
_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class AllowedHosts:
    """`names` are hosts in lower case without a port; `*.name` means all below it, none means any.

    A browser can be led to an address of the loopback under a name of an attacker's: what listens
    there answers for its own names only.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(name.lower() for name in names if not name.startswith("*."))
        self._suffixes = tuple(name[1:].lower() for name in names if name.startswith("*."))

    @classmethod
    def of(cls, named: Sequence[str], listens_on: str, public: str | None = None) -> AllowedHosts:
        """As the operator has `named` them, or what follows from the address listened on; and
        `public`, the host under which people come."""
        own = () if public is None else (public,)
        if named:
            return cls((*named, *own))
        return cls((*_LOOPBACK, listens_on, *own) if is_loopback(listens_on) else ())

    def allow(self, header: str) -> bool:
        match = _HOST.fullmatch(header)
        if match is None:
            return False
        if not self._names and not self._suffixes:
            return True
        name = match["name"].lower()
        return name in self._names or name.endswith(self._suffixes)
