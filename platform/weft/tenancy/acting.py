"""Who acts, in the words of the audit trail."""

from __future__ import annotations

from weft.audit import Actor
from weft.tenancy.principal import Client, Identity, Operator, Principal


def actor_of(who: Identity) -> Actor:
    """Whoever sent the request, with where it came from."""
    address, agent = who.client.address, who.client.user_agent
    if isinstance(who, Principal):
        return Actor("api_key", who.key_id, who.tenant_id, address, agent)
    if isinstance(who, Operator):
        kind = "operator" if who.kind == "operator_key" else who.kind
        return Actor(kind, who.id, None, address, agent)
    return Actor(who.kind, who.id, who.tenant_id, address, agent)


def person_actor(user_id: str, tenant_id: str | None, client: Client) -> Actor:
    """A person about their own account, who may act for nothing yet."""
    return Actor("session", user_id, tenant_id, client.address, client.user_agent)
