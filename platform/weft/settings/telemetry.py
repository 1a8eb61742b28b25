"""Where is told how requests went."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from weft.settings.fields import Settings, setting


@dataclass(frozen=True, kw_only=True)
class TelemetrySettings(Settings):
    """Spans go to `otlp_endpoint`, a collector that takes OTLP over HTTP; None: none are made.

    Headers and certificates for it come from OpenTelemetry's own variables
    (`OTEL_EXPORTER_OTLP_HEADERS`), as do sampling and a resource's attributes.
    """

    otlp_endpoint: str | None = setting(
        None,
        "Send a span of each inference request to this OpenTelemetry collector, as "
        "http://127.0.0.1:4318. Default: no spans are made.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.otlp_endpoint is None:
            return
        try:
            parts = urlsplit(self.otlp_endpoint)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            is_url = False
        # it is logged by the exporter, so a password has no place in it
        if not is_url or parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "otlp_endpoint must be like http://127.0.0.1:4318, without a user or a query"
            )
