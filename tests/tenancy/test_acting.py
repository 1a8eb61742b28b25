"""Everyone who can act has a name in the audit trail."""

from __future__ import annotations

import pytest

from weft.audit import Actor
from weft.tenancy.acting import actor_of
from weft.tenancy.principal import Client, Identity, Operator, Principal, TenantAdmin

CLIENT = Client("192.0.2.1", "curl/8")


@pytest.mark.parametrize(
    ("who", "kind", "actor_id", "tenant_id"),
    [
        (Principal("t", "p", "k", frozenset(), CLIENT), "api_key", "k", "t"),
        (TenantAdmin("t", frozenset(), "admin_key", "a", CLIENT), "admin_key", "a", "t"),
        (TenantAdmin("t", frozenset(), "session", "u", CLIENT), "session", "u", "t"),
        (Operator("o", client=CLIENT), "operator", "o", None),
        (Operator("u", kind="session", client=CLIENT), "session", "u", None),
    ],
)
def test_an_actor_is_who_sent_the_request(
    who: Identity, kind: str, actor_id: str, tenant_id: str | None
) -> None:
    actor = actor_of(who)
    assert (actor.kind, actor.id, actor.tenant_id) == (kind, actor_id, tenant_id)
    assert (actor.ip, actor.user_agent) == ("192.0.2.1", "curl/8")
    assert isinstance(actor, Actor)
