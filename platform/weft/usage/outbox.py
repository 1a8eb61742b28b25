"""Messages about events: written with them, delivered at least once, the same at every delivery."""

from __future__ import annotations

from collections.abc import Sequence

from weft.db.prepared import Values

EVENT_KIND = "usage.event"
_TOLD = (
    "tenant_id",
    "project_id",
    "api_key_id",
    "model",
    "base_model",
    "adapter_id",
    "adapter_version",
    "adapter_digest",
    "started_at_ms",
    "ended_at_ms",
    "prompt_tokens",
    "cached_prompt_tokens",
    "completion_tokens",
    "finish_reason",
    "outcome",
    "price_id",
    "amount_pico",
    "replica_id",
    "replica_seq",
    "schema_version",
)


def messages_of(event: Values, sinks: Sequence[str]) -> list[Values]:
    """Rows of the outbox for an event's row, one for each sink; their id is the event's."""
    if not sinks:
        return []
    payload = {name: event[name] for name in _TOLD}
    return [
        {
            "sink": sink,
            "id": event["event_id"],
            "tenant_id": event["tenant_id"],
            "kind": EVENT_KIND,
            "payload": payload,
            "created_at_ms": event["recorded_at_ms"],
            "due_at_ms": event["recorded_at_ms"],
        }
        for sink in sinks
    ]
