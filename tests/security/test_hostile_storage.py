"""Attack classes 35 and 36: bytes that change after they were judged, and more of them than one
tenant may have."""

from __future__ import annotations

from collections.abc import Callable

from tests.gateway.site import Site

Lora = Callable[..., dict[str, bytes]]


def test_36_versions_without_end_meet_a_quota(site: Site, lora: Lora) -> None:
    """The server allows 6 to a tenant; deleting does not make room, or a loop would."""
    key = site.tenant("filler")
    site.create_adapter(key, "bot")
    answers = [site.upload(key, "bot", lora(seed)) for seed in range(8)]
    assert [answer.status_code for answer in answers] == [201] * 6 + [429] * 2
    assert answers[-1].json()["error"]["code"] == "insufficient_quota"
    assert site.call(key, "DELETE", "/v1/adapters/bot/versions/1").status_code == 200
    assert site.upload(key, "bot", lora(9)).status_code == 429
    site.create_adapter(key, "other")
    assert site.upload(key, "other", lora(10)).status_code == 429
    assert site.upload(key, "bot", lora(3)).status_code == 200, "what is there already is no more"
    stored = site.app.state.registry.publisher._store.list_digests()
    assert len([*site.settings.uploads_dir.iterdir()]) == 0
    neighbour = site.tenant("neighbour")
    site.create_adapter(neighbour, "bot")
    assert site.upload(neighbour, "bot", lora(3)).status_code == 201, "another's quota is its own"
    assert site.app.state.registry.publisher._store.list_digests() == stored, "the same bytes"


def test_36_bytes_without_end_meet_a_quota(site: Site, lora: Lora) -> None:
    """The server allows a mebibyte to a tenant, and as much in one upload."""
    key = site.tenant("hoarder")
    site.create_adapter(key, "bot")
    big = lora(0)
    big["adapter_model.safetensors"] = bytes(2**20 + 1)
    assert site.upload(key, "bot", big).status_code == 413
    assert [*site.settings.uploads_dir.iterdir()] == []
