"""Where a browser may send from: the origins of our own pages. Knows no sessions.

Nothing here is taken from the Host header, which whoever sends the request may choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class CrossSiteError(Exception):
    """A page that is not ours made the browser send this."""


@dataclass(frozen=True, slots=True)
class Origins:
    """`public` is the origin that people use; None: http on this machine, at the server's port."""

    public: str | None

    @property
    def is_secure(self) -> bool:
        return self.public is not None and self.public.startswith("https:")

    def base(self, port: int) -> str:
        """The origin for links and redirects; `port` is the one that the server listens on."""
        return self.public or f"http://127.0.0.1:{port}"

    def check(self, headers: Mapping[str, str], port: int) -> None:
        """CrossSiteError unless the headers of a request that changes something say that one of
        our own pages sent it. Browsers send at least one of the two with every such request."""
        site = headers.get("sec-fetch-site")
        if site is not None and site != "same-origin":
            raise CrossSiteError(f"Sec-Fetch-Site is '{site}'")
        origin = headers.get("origin")
        if origin is None and site is None:
            raise CrossSiteError("neither Origin nor Sec-Fetch-Site is there")
        if origin is not None and origin not in self._allowed(port):
            raise CrossSiteError(f"the origin is not {self.base(port)}")

    def _allowed(self, port: int) -> tuple[str, ...]:
        if self.public is not None:
            return (self.public,)
        return tuple(f"http://{name}:{port}" for name in _LOOPBACK_NAMES)
