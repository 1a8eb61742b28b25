"""How people come to the platform, and how long they stay signed in."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from weft.settings.fields import Settings, setting

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class SignInSettings(Settings):
    """People sign in at `public_url` only; None: over http on this machine. A session ends
    `session_idle_s` after its last request, and `session_max_s` after the sign-in."""

    public_url: str | None = setting(
        None,
        "Where people reach the server, as https://weft.example.com: signing in works there alone. "
        "Default: this machine, over http.",
    )
    session_idle_s: int = setting(
        3600, "Seconds without a request after which people are signed out.", above=60
    )
    session_max_s: int = setting(
        12 * 3600, "Seconds after signing in at which people are signed out.", above=60
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.public_url is not None:
            parse_public_url(self.public_url)

    @property
    def public_origin(self) -> str | None:
        """`public_url` as browsers write an origin."""
        return None if self.public_url is None else parse_public_url(self.public_url)

    @property
    def public_host(self) -> str | None:
        """The host of `public_url`, without a port."""
        return None if self.public_url is None else urlsplit(self.public_url).hostname


def parse_public_url(text: str) -> str:
    """The origin of a public URL; ValueError unless it is https, or http on this machine.

    A session's cookie that travels over plain HTTP can be read and used by whoever carries it.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"public_url: {error}") from error
    host = parts.hostname or ""
    if parts.scheme not in _DEFAULT_PORTS or not host or parts.path not in ("", "/"):
        raise ValueError(f"public_url must be like https://weft.example.com, not {text!r}")
    if parts.query or parts.fragment or parts.username or parts.password:
        raise ValueError(f"public_url must be a scheme, a host and a port only, not {text!r}")
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError(f"public_url must be https unless it is on this machine, not {text!r}")
    shown = f"[{host}]" if ":" in host else host
    has_port = port is not None and port != _DEFAULT_PORTS[parts.scheme]
    return f"{parts.scheme}://{shown}:{port}" if has_port else f"{parts.scheme}://{shown}"


def is_loopback(host: str) -> bool:
    """Whether a host, as a URL's `hostname` gives it, is this machine by name or by number."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
