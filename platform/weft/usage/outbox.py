"""Messages about events: written with them, delivered at least once, the same at every delivery."""

from __future__ import annotations

from collections.abc import Sequence

from weft.usage.models import OutboxMessage, UsageEvent

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


def messages_of(event: UsageEvent, sinks: Sequence[str]) -> list[OutboxMessage]:
    """One for each sink; their id is the event's."""
    payload = {name: getattr(event, name) for name in _TOLD}
    return [
        OutboxMessage(
            sink=sink,
            id=event.event_id,
            tenant_id=event.tenant_id,
            kind=EVENT_KIND,
            payload=payload,
            created_at_ms=event.recorded_at_ms,
            due_at_ms=event.recorded_at_ms,
            claimed_until_ms=0,
            num_attempts=0,
        )
        for sink in sinks
    ]
