"""What is allowed and should be known: settings that open a door wider than most want it.

What is never right is refused where the setting is; this is for the rest.
"""

from __future__ import annotations

import stat
from urllib.parse import parse_qs, urlsplit

from weft.settings.server import ServerSettings
from weft.settings.sign_in import is_loopback

_CHECKED_TLS = ("require", "verify-ca", "verify-full")


def find_dangers(settings: ServerSettings) -> list[str]:
    """A sentence for each, with what to do about it. None names a secret."""
    return [
        *_of_data(settings),
        *_of_addresses(settings),
        *_of_stores(settings),
        *_of_choices(settings),
    ]


def _of_data(settings: ServerSettings) -> list[str]:
    folder = settings.data_dir
    if not folder.is_dir() or not stat.S_IMODE(folder.stat().st_mode) & 0o077:
        return []
    return [f"Others on this machine can look into {folder}: run chmod 700 {folder}."]


def _of_addresses(settings: ServerSettings) -> list[str]:
    found = []
    if not is_loopback(settings.host):
        found.append(
            f"--host {settings.host} is reached from other machines, and the server speaks no TLS: "
            "have a proxy in front of it do so, or keys travel in the clear."
        )
        if not settings.allowed_hosts:
            found.append("Any host name is answered for: name the server's own by --allowed-host.")
        if settings.probes_at is None:
            found.append("/metrics is open to whoever reaches the server: set --probe-port.")
    if settings.probes_at is not None and not is_loopback(settings.probe_host):
        found.append(
            f"--probe-host {settings.probe_host}: probes and metrics need no key; let only "
            "what watches the server reach that port."
        )
    return found


def _of_stores(settings: ServerSettings) -> list[str]:
    found = []
    if settings.database_url is not None and _is_in_clear(settings.database_url, "postgres"):
        found.append(
            "WEFT_DATABASE_URL leads to another machine without TLS: add ?sslmode=verify-full."
        )
    if settings.redis_url is not None and _is_in_clear(settings.redis_url, "redis:"):
        found.append("WEFT_REDIS_URL leads to another machine without TLS: use rediss://.")
    if settings.s3_endpoint_url is not None and _is_in_clear(settings.s3_endpoint_url, "http:"):
        found.append("--s3-endpoint leads to another machine without TLS: adapters can be read.")
    return found


def _is_in_clear(url: str, unless_asked: str) -> bool:
    """Whether a URL of this kind is of another machine and asks for no TLS."""
    parts = urlsplit(url)
    asked = parse_qs(parts.query).get("sslmode", [""])[-1]
    if not url.startswith(unless_asked) or asked in _CHECKED_TLS:
        return False
    # without a host it is a socket on this machine
    return parts.hostname is not None and not is_loopback(parts.hostname)


def _of_choices(settings: ServerSettings) -> list[str]:
    found = []
    if settings.fail_open_limits:
        found.append("--fail-open-limits: without Redis tenants run without rate limits.")
    if settings.share_base_prefix:
        found.append(
            "--share-base-prefix: how soon the base answers tells a tenant whether another one's "
            "prompt began alike."
        )
    return found
