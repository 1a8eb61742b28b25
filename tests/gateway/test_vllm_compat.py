"""vLLM's routes for loading and unloading adapters, over registered versions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.gateway.site import Site

from weft.gateway import vllm_compat
from weft.messages import AdapterPlacement

Lora = Callable[..., dict[str, bytes]]

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture
def site(shared_site: Site) -> Site:
    return shared_site


@pytest.fixture
def digests(site: Any, acme: str, lora: Lora) -> list[str]:
    """Of two versions of `bot`; `default` is at the second."""
    site.create_adapter(acme, "bot")
    found = [site.upload(acme, "bot", lora(seed)).json()["digest"] for seed in (1, 2)]
    for digest in found:
        asyncio.run(site.engine.unload_adapter(digest))
    site.engine.prefetched.clear()
    site.engine.unloaded.clear()
    return found


def load(site: Any, key: str | None, name: str, path: str, **extra: object) -> Any:
    return site.call(key, "POST", LOAD, json={"lora_name": name, "lora_path": path, **extra})


def unload(site: Any, key: str, name: str) -> Any:
    return site.call(key, "POST", UNLOAD, json={"lora_name": name})


def model_of(site: Any, key: str, name: str) -> str:
    completion = site.client(key).completions.create(model=name, prompt="abc")
    return str(completion.model)


def test_a_registered_version_is_loaded(site: Any, acme: str, digests: list[str]) -> None:
    for path in ("bot", "bot@default", "bot@v2", "tiny:bot@v2", digests[1]):
        answer = load(site, acme, "bot", path)
        told = "Success: LoRA adapter 'bot' added successfully."
        assert (answer.status_code, answer.text) == (200, told), path
        assert answer.headers["content-type"].startswith("text/plain")
        assert site.engine.prefetched == [digests[1]]
        again = load(site, acme, "bot", "bot@v2")
        assert (again.status_code, again.json()["error"]["type"]) == (400, "InvalidUserInput")
        assert "set 'load_inplace' to True" in again.json()["error"]["message"]
        assert load(site, acme, "bot", "bot@v2", load_inplace=True).status_code == 200
        asyncio.run(site.engine.unload_adapter(digests[1]))
        site.engine.prefetched.clear()


def test_a_name_is_moved_in_place_or_not_at_all(site: Any, acme: str, digests: list[str]) -> None:
    refused = load(site, acme, "bot", "bot@v1")
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "InvalidUserInput")
    assert model_of(site, acme, "bot") == "bot@v2"
    assert site.engine.prefetched == []
    assert load(site, acme, "bot", digests[0], load_inplace=True).status_code == 200
    assert model_of(site, acme, "bot") == "bot@v1"
    assert site.engine.prefetched == [digests[0]]
    # an alias that is not there yet is made
    assert load(site, acme, "bot@canary", "bot@v2").status_code == 200
    assert model_of(site, acme, "bot@canary") == "bot@v2"
    assert load(site, acme, "tiny:bot@v2", "bot@v2", load_inplace=True).status_code == 200


def test_no_path_and_no_strange_adapter_is_loaded(site: Any, acme: str, digests: list[str]) -> None:
    unknown = "sha256:" + "0" * 64
    paths = ("/etc/passwd", "../bot", "s3://bucket/key", "https://hub/x", "box", "bot@v9", "tiny")
    for path in (*paths, unknown):
        answer = load(site, acme, "bot", path, load_inplace=True)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (404, "NotFoundError")
        assert error["message"] == f"Loading lora bot failed: No adapter found for {path}"
    assert site.engine.prefetched == []


def test_a_name_is_the_registrys(site: Any, acme: str, digests: list[str]) -> None:
    for name in ("other", "bot@v1", "Bot!", "~merged"):
        answer = load(site, acme, name, "bot@v2")
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (400, "InvalidUserInput"), name
        assert error["param"] == "lora_name"


def test_both_names_are_needed(site: Any, acme: str) -> None:
    for body in ({}, {"lora_name": "bot"}, {"lora_path": "bot"}):
        answer = site.call(acme, "POST", LOAD, json=body)
        assert answer.status_code == 400
        assert (
            answer.json()["error"]["message"]
            == "Both 'lora_name' and 'lora_path' must be provided."
        )
    assert site.call(acme, "POST", UNLOAD, json={}).status_code == 400


def test_unloading_leaves_the_registration(site: Any, acme: str, digests: list[str]) -> None:
    assert unload(site, acme, "bot").status_code == 404  # not loaded
    load(site, acme, "bot", "bot@v2").raise_for_status()
    answer = unload(site, acme, "bot")
    assert (answer.status_code, answer.text) == (
        200,
        "Success: LoRA adapter 'bot' removed successfully.",
    )
    assert site.engine.unloaded == [digests[1]]
    gone = unload(site, acme, "bot")
    assert (gone.status_code, gone.json()["error"]["type"]) == (404, "NotFoundError")
    assert gone.json()["error"]["message"] == "The lora adapter 'bot' cannot be found."
    assert model_of(site, acme, "bot") == "bot@v2"


def test_a_pinned_adapter_is_not_unloaded(site: Any, acme: str, digests: list[str]) -> None:
    load(site, acme, "bot", "bot@v2").raise_for_status()
    site.call(acme, "POST", "/v1/adapters/bot/versions/2:pin").raise_for_status()
    answer = unload(site, acme, "bot")
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "InvalidUserInput")
    assert "pinned" in answer.json()["error"]["message"]
    assert site.engine.unloaded == []


def test_a_tenant_touches_its_own_adapters_alone(
    site: Any, acme: str, lora: Lora, digests: list[str]
) -> None:
    load(site, acme, "bot", "bot@v2").raise_for_status()
    other = site.tenant("other")
    for path in ("bot", "bot@v2", digests[1]):
        assert load(site, other, "bot", path).status_code == 404
    assert unload(site, other, "bot").status_code == 404
    # the same bytes: what one unloads, the other may be using
    site.create_adapter(other, "bot")
    site.upload(other, "bot", lora(2)).raise_for_status()
    assert unload(site, other, "bot").status_code == 200
    assert site.engine.unloaded == []


def test_only_a_key_that_may_write_adapters_loads(site: Any, acme: str, digests: list[str]) -> None:
    reader = site.key("acme", ["inference", "adapters:read"])
    assert load(site, reader, "bot", "bot@v2").status_code == 403
    assert unload(site, reader, "bot").status_code == 403
    assert load(site, None, "bot", "bot@v2").status_code == 401
    assert site.operator("POST", LOAD, json={}).status_code == 403


def test_what_cannot_be_loaded_is_told(
    site: Any, acme: str, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.engine.adapter_placements = [
        AdapterPlacement(digests[1], "failed", "remote", failure="the pool is too small")
    ]
    answer = load(site, acme, "bot", "bot@v2")
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (500, "InternalServerError")
    assert error["message"] == "Loading lora bot failed: the pool is too small"
    monkeypatch.setattr(vllm_compat, "_WAIT_S", 0.1)
    site.engine.adapter_placements = [AdapterPlacement(digests[1], "fetching", "remote")]
    answer = load(site, acme, "bot", "bot@v2")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "adapter_loading")
    assert answer.headers["retry-after"] == "5"


def test_a_purged_version_leaves_the_engine(site: Any, acme: str, digests: list[str]) -> None:
    site.call(acme, "DELETE", "/v1/adapters/bot/versions/1").raise_for_status()
    purged = site.operator("POST", "/admin/v1/adapters:purge", json={"retention_s": 0})
    assert purged.json()["num_versions"] == 1
    assert site.engine.unloaded == [digests[0]]
