"""Who is told of usage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from weft.settings.fields import Settings, setting
from weft.settings.sign_in import is_loopback

_SINK = re.compile(r"([a-z0-9][a-z0-9_-]{0,62})=(file:/.+|https?://.+)")


@dataclass(frozen=True, kw_only=True)
class MeteringSettings(Settings):
    """Each of `usage_sinks` is told of every usage event at least once, as a CloudEvent: a file of
    JSON lines, or a server that takes batches by POST, with `usage_sink_token` as its bearer token.
    A name stays with what waits to be delivered to it, also when its target changes."""

    usage_sinks: tuple[str, ...] = setting(
        (),
        "Tell usage events to name=file:/path.jsonl or name=https://host/path.",
        flag="--usage-sink",
    )
    usage_sink_token: str | None = setting(None, environment="WEFT_USAGE_SINK_TOKEN")

    def __post_init__(self) -> None:
        super().__post_init__()
        names = set()
        for sink in self.usage_sinks:
            found = _SINK.fullmatch(sink)
            if found is None:
                raise ValueError(
                    "usage_sinks must be name=file:/path or name=https://host/path, "
                    f"not {sink.partition('=')[0]!r}"
                )
            if found[1] in names:
                raise ValueError(f"usage_sinks must have a name each, {found[1]!r} is there twice")
            names.add(found[1])
            url = urlsplit(found[2])
            is_in_clear = url.scheme == "http" and not is_loopback(url.hostname or "")
            if is_in_clear and self.usage_sink_token is not None:
                raise ValueError(
                    "usage_sinks: WEFT_USAGE_SINK_TOKEN would travel in the clear to "
                    f"{found[1]!r}; use https"
                )

    @property
    def usage_sink_targets(self) -> Mapping[str, str]:
        """Targets by name."""
        return dict(sink.split("=", 1) for sink in self.usage_sinks)
