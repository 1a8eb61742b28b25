"""Where versions are, hints to the engine, and pins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.gateway.site import Site

from weft.messages import AdapterPlacement

Lora = Callable[..., dict[str, bytes]]
PATH = "/v1/adapters/bot/versions/{}{}"


@pytest.fixture
def site(shared_site: Site) -> Site:
    return shared_site


@pytest.fixture
def bot(site: Any, acme: str, lora: Lora) -> str:
    """An adapter with two versions; gives the tenant's key."""
    site.create_adapter(acme, "bot")
    for seed in (1, 2):
        site.upload(acme, "bot", lora(seed)).raise_for_status()
    return acme


def digest_of(site: Any, key: str, number: int) -> str:
    return str(site.call(key, "GET", PATH.format(number, "")).json()["digest"])


def test_a_version_is_loaded_found_and_unloaded(site: Any, bot: str) -> None:
    digest = digest_of(site, bot, 1)
    site.engine.prefetched.clear()
    found = site.call(bot, "GET", PATH.format(1, "/placements")).json()
    assert (found["model"], found["digest"], found["pinned"]) == ("bot@v1", digest, False)
    assert [(p["tier"], p["state"]) for p in found["data"]] == [("gpu", "device")]
    site.engine.adapter_placements = [
        AdapterPlacement(digest_of(site, bot, 2), "host", "cpu"),
        AdapterPlacement(digest, "device", "gpu", num_references=3, rank=4, num_bytes=640),
    ]
    loaded = site.call(bot, "POST", PATH.format(1, ":load"))
    assert loaded.status_code == 202
    (placement,) = loaded.json()["data"]
    assert (placement["tier"], placement["state"], placement["num_running"]) == ("gpu", "device", 3)
    assert site.engine.prefetched == [digest]
    site.engine.adapter_placements.clear()
    unloaded = site.call(bot, "POST", PATH.format(1, ":unload"))
    assert (unloaded.status_code, unloaded.json()["data"][0]["tier"]) == (202, "remote")
    assert site.engine.unloaded == [digest]


def test_another_tenants_version_is_not_unloaded_with_ones_own(
    site: Any, bot: str, lora: Lora
) -> None:
    other = site.tenant("other")
    site.create_adapter(other, "theirs")
    site.upload(other, "theirs", lora(1)).raise_for_status()
    assert site.call(bot, "POST", PATH.format(1, ":unload")).status_code == 202
    assert site.engine.unloaded == []
    site.call(other, "DELETE", "/v1/adapters/theirs").raise_for_status()
    assert site.call(bot, "POST", PATH.format(1, ":unload")).status_code == 202
    assert site.engine.unloaded == [digest_of(site, bot, 1)]


def test_a_pin_holds_until_it_is_taken_back(site: Any, bot: str) -> None:
    digest = digest_of(site, bot, 1)
    for _ in range(2):
        pinned = site.call(bot, "POST", PATH.format(1, ":pin"))
        assert (pinned.status_code, pinned.json()["pinned"]) == (200, True)
    assert site.engine.pinned == {digest}
    assert site.call(bot, "GET", PATH.format(1, "")).json()["pinned"] is True
    refused = site.call(bot, "POST", PATH.format(1, ":unload"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_pinned")
    one_more = site.call(bot, "POST", PATH.format(2, ":pin"))
    assert (one_more.status_code, one_more.json()["error"]["code"]) == (429, "insufficient_quota")
    assert site.call(bot, "POST", PATH.format(1, ":unpin")).json()["pinned"] is False
    assert site.engine.pinned == set()
    assert site.call(bot, "POST", PATH.format(2, ":pin")).status_code == 200


def test_bytes_of_two_tenants_are_pinned_while_either_wants_it(
    site: Any, bot: str, lora: Lora
) -> None:
    other = site.tenant("other")
    site.create_adapter(other, "bot")
    site.upload(other, "bot", lora(1)).raise_for_status()
    for key in (bot, other):
        site.call(key, "POST", PATH.format(1, ":pin")).raise_for_status()
    site.call(bot, "POST", PATH.format(1, ":unpin")).raise_for_status()
    assert site.engine.pinned == {digest_of(site, bot, 1)}
    site.call(other, "DELETE", "/v1/adapters/bot").raise_for_status()
    assert site.engine.pinned == set()


def test_placements_are_of_ones_own_versions_that_are_ready(site: Any, bot: str) -> None:
    site.call(bot, "DELETE", PATH.format(1, "")).raise_for_status()
    other = site.tenant("other")
    reader = site.key("acme", ["adapters:read"])
    for method, path in (
        ("GET", "/placements"),
        ("POST", ":load"),
        ("POST", ":unload"),
        ("POST", ":pin"),
        ("POST", ":unpin"),
    ):
        assert site.call(other, method, PATH.format(2, path)).status_code == 404
        gone = site.call(bot, method, PATH.format(1, path))
        assert gone.json()["error"]["code"] == "version_not_ready"
        expected = 200 if method == "GET" else 403
        assert site.call(reader, method, PATH.format(2, path)).status_code == expected
