"""Aliases, states, idempotency keys and purging over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.gateway.site import Site

CHAT = "/v1/chat/completions"
Lora = Callable[..., dict[str, bytes]]


@pytest.fixture
def site(shared_site: Site) -> Site:
    return shared_site


def chat(model: str) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def three(site: Any, acme: str, lora: Lora) -> str:
    """An adapter with three versions; gives the tenant's key."""
    site.create_adapter(acme, "bot")
    for seed in (1, 2, 3):
        site.upload(acme, "bot", lora(seed)).raise_for_status()
    return acme


def test_an_alias_is_made_moved_and_deleted(site: Any, three: str) -> None:
    path = "/v1/adapters/bot/aliases/prod"

    def put(**body: object) -> Any:
        return site.call(three, "PUT", path, json=body)

    made = put(version=1, expected_version=None).json()
    assert (made["object"], made["id"], made["model"]) == ("adapter.alias", "prod", "bot@v1")
    assert site.call(three, "POST", CHAT, json=chat("bot@prod")).json()["model"] == "bot@v1"
    refused = put(version=3, expected_version=2)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_conflict")
    assert refused.headers["x-should-retry"] == "false"
    assert put(version=3, expected_version=1).json()["version"] == 3
    assert put(version=2).json()["version"] == 2
    listed = site.call(three, "GET", "/v1/adapters/bot/aliases").json()["data"]
    assert {alias["id"]: alias["version"] for alias in listed} == {"default": 3, "prod": 2}
    assert site.call(three, "DELETE", "/v1/adapters/bot/versions/2").status_code == 409
    assert site.call(three, "DELETE", f"{path}?expected_version=1").status_code == 409
    assert site.call(three, "DELETE", f"{path}?expected_version=2").json()["deleted"] is True
    assert site.call(three, "DELETE", path).status_code == 404
    assert site.call(three, "DELETE", "/v1/adapters/bot/versions/2").status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "version"),
        ({"version": "1"}, "version"),
        ({"version": 0}, "version"),
        ({"version": 2**40}, "version"),
        ({"version": 1, "expected_version": 0}, "expected_version"),
        ({"version": 1, "tenant_id": "x"}, "tenant_id"),
    ],
)
def test_a_bad_move_is_400(site: Any, three: str, body: dict[str, object], param: str) -> None:
    answer = site.call(three, "PUT", "/v1/adapters/bot/aliases/prod", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_another_tenants_aliases_look_like_none(site: Any, three: str) -> None:
    other = site.tenant("other")
    for method, path, body in (
        ("GET", "aliases", None),
        ("PUT", "aliases/prod", {"version": 1}),
        ("DELETE", "aliases/default", None),
    ):
        mine = site.call(other, method, f"/v1/adapters/bot/{path}", json=body)
        none = site.call(other, method, f"/v1/adapters/box/{path}", json=body)
        assert mine.status_code == none.status_code == 404
        assert mine.content.replace(b"bot", b"box") == none.content
    reader = site.key("acme", ["adapters:read", "inference"])
    path = "/v1/adapters/bot/aliases/prod"
    assert site.call(reader, "PUT", path, json={"version": 1}).status_code == 403
    assert site.call(reader, "DELETE", path).status_code == 403


def test_a_deleted_version_is_archived_then_purged(site: Any, three: str) -> None:
    def numbers(query: str = "") -> list[int]:
        path = f"/v1/adapters/bot/versions{query}"
        return [v["version"] for v in site.call(three, "GET", path).json()["data"]]

    digest = site.call(three, "GET", "/v1/adapters/bot/versions/1").json()["digest"]
    folder = site.settings.adapters_dir / digest.removeprefix("sha256:")
    site.call(three, "DELETE", "/v1/adapters/bot/versions/1").raise_for_status()
    assert site.call(three, "POST", CHAT, json=chat("bot@v1")).status_code == 404
    assert (numbers(), numbers("?state=archived"), numbers("?state=purged")) == ([3, 2], [1], [])
    archived = site.call(three, "GET", "/v1/adapters/bot/versions/1").json()
    assert (archived["state"], archived["digest"]) == ("archived", digest)
    assert archived["archived_at"] >= archived["created_at"]
    path = "/admin/v1/adapters:purge"
    assert site.call(three, "POST", path, json={"retention_s": 0}).status_code == 403
    assert site.operator("POST", path, json={}).json()["num_versions"] == 0
    assert folder.is_dir()
    done = site.operator("POST", path, json={"retention_s": 0}).json()
    assert (done["num_versions"], done["num_digests"]) == (1, 1)
    assert not folder.exists()
    assert site.engine.discarded == [digest]
    assert (numbers("?state=archived"), numbers("?state=purged")) == ([], [1])
    assert site.call(three, "GET", "/v1/adapters/bot/versions?state=x").status_code == 400


def test_an_idempotency_key_has_one_effect(site: Any, acme: str, lora: Lora) -> None:
    def upload(key: str, adapter: str, seed: int, idempotency_key: str = "k-1") -> Any:
        return site.call(
            key,
            "POST",
            f"/v1/adapters/{adapter}/versions",
            files=[(part, (part, data)) for part, data in lora(seed).items()],
            headers={"idempotency-key": idempotency_key},
        )

    other = site.tenant("other")
    for key in (acme, other):
        site.create_adapter(key, "bot")
    site.create_adapter(acme, "box")
    first, again = upload(acme, "bot", 1), upload(acme, "bot", 1)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == "/v1/adapters/bot/versions/1"
    for adapter, seed in (("bot", 2), ("box", 1)):
        conflict = upload(acme, adapter, seed)
        assert conflict.status_code == 409
        assert conflict.json()["error"]["code"] == "idempotency_conflict"
    assert upload(other, "bot", 2).status_code == 201
    assert upload(acme, "bot", 2, "k-2").json()["version"] == 2
    for bad in ("", "a b", "x" * 256):
        assert upload(acme, "bot", 3, bad).json()["error"]["param"] == "Idempotency-Key"


def test_a_model_cards_metadata_is_kept(site: Any, acme: str, lora: Lora) -> None:
    site.create_adapter(acme, "bot")
    readme = b"---\nlicense: mit\nbase_model: org/tiny\n---\n# Bot\n<script>"
    version = site.upload(acme, "bot", {**lora(), "README.md": readme}).json()
    assert version["card"] == {"license": "mit", "base_model": ["org/tiny"]}
    assert version["source"] == {"type": "multipart"}
