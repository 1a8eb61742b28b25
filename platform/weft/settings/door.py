"""What comes through the door: which hosts a server answers for, how slowly bytes may come."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from weft.settings.fields import Settings, setting

# a name or address; "*." stands for whatever is below a name of at least two labels
_HOST_RULE = re.compile(
    r"(\*\.(?=[^.]+\.))?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]{2,45}\]"
)


@dataclass(frozen=True, kw_only=True)
class DoorSettings(Settings):
    """A request's head has to be there within `head_timeout_s`; its body may take
    `body_timeout_s`, and a second more for each 4 KiB of it."""

    allowed_hosts: tuple[str, ...] = setting(
        (),
        "A host name that requests may name; repeat for several, '*.name' means all below it. "
        "Default: those of the loopback where the server listens on it, else any.",
        flag="--allowed-host",
    )
    trusted_proxies: tuple[str, ...] = setting(
        (),
        "A network, as 10.1.0.0/16, whose X-Forwarded-For is believed; repeat for several. "
        "Default: none.",
        flag="--trusted-proxy",
    )
    head_timeout_s: float = setting(20.0, above=0)
    body_timeout_s: float = setting(30.0, above=0)
    log_format: str = setting(
        "text",
        "How log lines are written; as json there is one for each request, too.",
        choices=("text", "json"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for host in self.allowed_hosts:
            if _HOST_RULE.fullmatch(host) is None:
                raise ValueError(
                    "allowed_hosts must be host names without a port, or *.name for all below "
                    f"one, not {host!r}"
                )
        for network in self.trusted_proxies:
            try:
                parsed = ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"trusted_proxies must be networks: {error}") from error
            if parsed.prefixlen == 0:
                raise ValueError(f"trusted_proxies must not be everybody, as {network} is")
