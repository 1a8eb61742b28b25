"""The audit trail on the wire, in the shape of OpenAI's audit logs."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from weft.audit.models import AuditEntry


class AuditLog(BaseModel):
    """One entry. What was changed stands under the name of its `type`."""

    model_config = ConfigDict(extra="allow")
    id: str
    object: Literal["organization.audit_log"] = "organization.audit_log"
    type: str
    effective_at: int
    actor: dict[str, Any]
    number: int
    hash: str


class AuditLogList(BaseModel):
    object: Literal["list"] = "list"
    data: list[AuditLog]
    first_id: str | None
    last_id: str | None
    has_more: bool


def entry_to_wire(entry: AuditEntry) -> AuditLog:
    """With the number and hash that the entry has in its chain, so that both can be kept."""
    changes = json.loads(entry.changes)
    is_update = entry.type.endswith(".updated")
    what = {"id": entry.target_id, "changes_requested" if is_update else "data": changes}
    fields: dict[str, Any] = {
        "id": entry.id,
        "type": entry.type,
        "effective_at": entry.recorded_at_ms // 1000,
        "actor": _actor_to_wire(entry),
        "number": entry.number,
        "hash": entry.hash,
        entry.type: what,
    }
    return AuditLog(**fields)


def _actor_to_wire(entry: AuditEntry) -> dict[str, Any]:
    came_by = {"ip_address": entry.ip, "user_agent": entry.user_agent}
    if entry.actor_kind == "session":
        return {"type": "session", "session": {"user": {"id": entry.actor_id}, **came_by}}
    if entry.actor_kind in ("api_key", "admin_key"):
        kind = "admin" if entry.actor_kind == "admin_key" else "project"
        return {"type": "api_key", "api_key": {"id": entry.actor_id, "type": kind, **came_by}}
    return {"type": entry.actor_kind, entry.actor_kind: {"id": entry.actor_id, **came_by}}
