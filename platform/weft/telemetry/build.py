"""Makes what the settings ask for, and imports nothing that they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft.telemetry.spans import SpanSender


def create_span_sender(endpoint: str | None) -> SpanSender | None:
    """ValueError where OpenTelemetry's packages are asked for and not installed."""
    if endpoint is None:
        return None
    try:
        from weft.telemetry.spans import SpanSender
    except ImportError as error:
        raise ValueError(
            "otlp_endpoint: OpenTelemetry's packages are missing; install weft[telemetry]"
        ) from error
    return SpanSender(endpoint)
