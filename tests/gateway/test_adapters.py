"""Upload, resolve and delete adapters; tenants never see each other's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weft.registry.service import ServedBase
from weft.settings import ServerSettings

CHAT = "/v1/chat/completions"
Lora = Callable[..., dict[str, bytes]]


def chat(model: str, **extra: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **extra}


def test_an_uploaded_adapter_is_served_under_its_immutable_name(
    site: Any, acme: str, lora: Lora
) -> None:
    site.create_adapter(acme, "bot")
    uploaded = site.upload(acme, "bot", lora())
    assert uploaded.status_code == 201
    version = uploaded.json()
    assert (version["version"], version["state"], version["ranks"]) == (1, "ready", [4])
    for name in ("bot", "bot@default", "bot@v1"):
        for stream in (False, True):
            answer = site.call(acme, "POST", CHAT, json=chat(name, stream=stream))
            assert answer.status_code == 200
            assert answer.headers["x-weft-adapter-version"] == "bot@v1"
            assert answer.headers["x-weft-adapter-digest"] == version["digest"]
            assert '"model":"bot@v1"' in answer.text
            assert site.engine.requests[-1].adapter_digest == version["digest"]
    by_field = {"adapter_id": "bot", "messages": [{"role": "user", "content": "hi"}]}
    assert site.call(acme, "POST", CHAT, json=by_field).json()["model"] == "bot@v1"
    assert site.engine.prefetched == [version["digest"]]
    (usage,) = site.usage(acme)
    assert (usage["model"], usage["adapter_version"]) == ("bot@v1", 1)
    assert usage["adapter_digest"] == version["digest"]
    assert usage["num_model_requests"] == 7


def test_default_moves_to_the_newest_and_old_versions_stay(
    site: Any, acme: str, lora: Lora
) -> None:
    site.create_adapter(acme, "bot")
    first = site.upload(acme, "bot", lora(1)).json()
    second = site.upload(acme, "bot", lora(2)).json()
    assert second["version"] == 2
    assert first["digest"] != second["digest"]
    assert site.call(acme, "POST", CHAT, json=chat("bot")).json()["model"] == "bot@v2"
    assert site.call(acme, "POST", CHAT, json=chat("bot@v1")).json()["model"] == "bot@v1"
    assert site.call(acme, "GET", "/v1/adapters/bot").json()["aliases"] == {"default": 2}
    listed = site.call(acme, "GET", "/v1/adapters/bot/versions").json()
    assert [v["version"] for v in listed["data"]] == [2, 1]
    one = site.call(acme, "GET", "/v1/adapters/bot/versions/1").json()
    assert one["report"]["ok"] is True


def test_the_same_bytes_again_are_the_version_there_is(site: Any, acme: str, lora: Lora) -> None:
    site.create_adapter(acme, "bot")
    first = site.upload(acme, "bot", lora())
    again = site.upload(acme, "bot", lora())
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()


def test_another_tenants_adapter_looks_exactly_like_none(site: Any, acme: str, lora: Lora) -> None:
    site.create_adapter(acme, "bot")
    digest = site.upload(acme, "bot", lora()).json()["digest"]
    other = site.tenant("other")
    for theirs, unknown in (("bot", "box"), ("bot@v1", "box@v1"), ("bot@default", "box@default")):
        mine = site.call(other, "POST", CHAT, json=chat(theirs))
        none = site.call(other, "POST", CHAT, json=chat(unknown))
        assert mine.status_code == none.status_code == 404
        assert mine.content.replace(theirs.encode(), unknown.encode()) == none.content
    assert site.call(other, "POST", CHAT, json=chat(digest)).status_code == 404
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/versions"),
        ("GET", "/versions/1"),
        ("DELETE", "/versions/1"),
    ):
        mine = site.call(other, method, f"/v1/adapters/bot{path}")
        none = site.call(other, method, f"/v1/adapters/box{path}")
        assert mine.status_code == none.status_code == 404
        assert mine.content.replace(b"bot", b"box") == none.content
    assert site.upload(other, "bot", lora()).status_code == 404
    assert site.call(other, "GET", "/v1/adapters").json()["data"] == []
    assert [m.id for m in site.client(other).models.list().data] == ["tiny"]
    assert site.call(other, "GET", "/v1/models/bot").status_code == 404
    # the name is free for them, and means their own
    site.create_adapter(other, "bot")
    theirs = site.upload(other, "bot", lora(5)).json()["digest"]
    site.call(other, "POST", CHAT, json=chat("bot"))
    assert site.engine.requests[-1].adapter_digest == theirs != digest


def test_models_list_the_base_and_ones_own_adapters(site: Any, acme: str, lora: Lora) -> None:
    site.create_adapter(acme, "empty")
    site.create_adapter(acme, "bot")
    site.upload(acme, "bot", lora())
    client = site.client(acme)
    cards = {card.id: card.to_dict() for card in client.models.list().data}
    assert set(cards) == {"tiny", "bot"}
    assert (cards["bot"]["parent"], cards["bot"]["root"]) == ("tiny", "bot@v1")
    assert cards["tiny"]["parent"] is None
    assert client.models.retrieve("bot@v1").id == "bot@v1"
    assert client.models.retrieve("tiny").id == "tiny"
    assert str(site.settings.data_dir) not in str(cards)


def test_a_base_may_have_a_slash_in_its_name(site: Any, acme: str) -> None:
    gateway = site.app.state.gateway
    gateway.base = ServedBase("org/tiny", gateway.base.digest)
    assert site.client(acme).models.retrieve("org/tiny").id == "org/tiny"
    assert site.call(acme, "GET", "/v1/models/org/tiny").json()["id"] == "org/tiny"
    assert site.call(acme, "GET", "/v1/models/org/huge").status_code == 404


def test_an_adapter_without_versions_cannot_be_called(site: Any, acme: str) -> None:
    site.create_adapter(acme, "bot")
    assert site.call(acme, "POST", CHAT, json=chat("bot")).status_code == 404


def test_a_version_in_use_by_an_alias_cannot_be_deleted(site: Any, acme: str, lora: Lora) -> None:
    site.create_adapter(acme, "bot")
    site.upload(acme, "bot", lora(1))
    refused = site.call(acme, "DELETE", "/v1/adapters/bot/versions/1")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "alias_in_use")
    assert refused.headers["x-should-retry"] == "false"
    site.upload(acme, "bot", lora(2))
    assert site.call(acme, "DELETE", "/v1/adapters/bot/versions/1").json()["deleted"] is True
    assert site.call(acme, "POST", CHAT, json=chat("bot@v1")).status_code == 404
    assert site.upload(acme, "bot", lora(3)).json()["version"] == 3
    assert site.call(acme, "DELETE", "/v1/adapters/bot").json()["deleted"] is True
    assert site.call(acme, "POST", CHAT, json=chat("bot")).status_code == 404
    assert site.call(acme, "POST", CHAT, json=chat("bot@v2")).status_code == 404


@pytest.mark.parametrize("name", ["", "Bot", "a/b", "a..b", "-a", "a" * 64, "a@b", "tiny", "é"])
def test_bad_adapter_names_are_refused(site: Any, acme: str, name: str) -> None:
    body = {"name": name, "base_model": "tiny"}
    answer = site.call(acme, "POST", "/v1/adapters", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "name")


def test_adapters_are_created_once_for_the_served_base(site: Any, acme: str) -> None:
    body = {"name": "bot", "base_model": "tiny", "description": "d", "tags": {"team": "x"}}
    created = site.call(acme, "POST", "/v1/adapters", json=body)
    assert (created.status_code, created.json()["tags"]) == (201, {"team": "x"})
    again = site.call(acme, "POST", "/v1/adapters", json=body)
    assert (again.status_code, again.json()["error"]["type"]) == (409, "conflict_error")
    wrong = site.call(acme, "POST", "/v1/adapters", json={"name": "b", "base_model": "huge"})
    assert wrong.json()["error"]["param"] == "base_model"
    headers = {"content-type": "application/json"}
    no_text = b'{"name": "b", "base_model": "\\ud800"}'
    answer = site.call(acme, "POST", "/v1/adapters", content=no_text, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "base_model")
    extra = site.call(acme, "POST", "/v1/adapters", json={**body, "tenant_id": "tnt_x"})
    assert extra.json()["error"]["code"] == "unknown_parameter"


def test_numbers_and_texts_the_database_cannot_hold_are_refused(site: Any, acme: str) -> None:
    site.create_adapter(acme, "bot")
    huge = site.call(acme, "GET", f"/v1/adapters/bot/versions/{10**30}")
    assert (huge.status_code, huge.json()["error"]["param"]) == (400, "number")
    body = b'{"name": "b", "base_model": "tiny", "description": "\\ud800"}'
    headers = {"content-type": "application/json"}
    bad = site.call(acme, "POST", "/v1/adapters", content=body, headers=headers)
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "description")


def test_lists_are_paged(site: Any, acme: str) -> None:
    for name in "abcde":
        site.create_adapter(acme, name)
    first = site.call(acme, "GET", "/v1/adapters?limit=2&order=asc").json()
    assert [a["name"] for a in first["data"]] == ["a", "b"]
    assert first["has_more"] is True
    after = f"/v1/adapters?limit=3&order=asc&after={first['last_id']}"
    rest = site.call(acme, "GET", after).json()
    assert [a["name"] for a in rest["data"]] == ["c", "d", "e"]
    assert rest["has_more"] is False
    assert site.call(acme, "GET", "/v1/adapters?limit=0").status_code == 400


def test_a_bad_adapter_is_refused_with_each_fault(site: Any, acme: str, lora: Lora) -> None:
    site.create_adapter(acme, "bot")
    cases = {
        "rank": lora(rank=32),
        "unknown key": lora(lora_bias=True),
        "not safetensors": {**lora(), "adapter_model.safetensors": b"\x80\x04pickle"},
        "not json": {**lora(), "adapter_config.json": b"{"},
    }
    for files in cases.values():
        refused = site.upload(acme, "bot", files)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (422, "adapter_invalid")
        assert error["details"]
        assert all(fault["message"] and fault["code"] for fault in error["details"])
    assert site.call(acme, "GET", "/v1/adapters/bot/versions").json()["data"] == []
    assert list(site.settings.uploads_dir.iterdir()) == []


def test_an_upload_over_the_cap_is_413(site: Any, acme: str, lora: Lora) -> None:
    site.create_adapter(acme, "bot")
    big = {**lora(), "adapter_model.safetensors": b"x" * 300_000}
    answer = site.upload(acme, "bot", big)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")
    assert list(site.settings.uploads_dir.iterdir()) == []
    # larger than the limit of other routes, but not than an upload's
    files = {**lora(), "adapter_model.safetensors": b"x" * 150_000}
    assert site.upload(acme, "bot", files).status_code == 422


def test_what_follows_the_last_part_counts_too(site: Any, acme: str, lora: Lora) -> None:
    site.create_adapter(acme, "bot")
    body = b""
    for name, data in lora().items():
        body += f'--b\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n'.encode()
        body += data + b"\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    for num_chunks, status in ((1, 201), (100, 413)):
        chunks = iter([body + b"--b--\r\n", *[b"x" * 2**14] * num_chunks])
        path = "/v1/adapters/bot/versions"
        answer = site.call(acme, "POST", path, content=chunks, headers=headers)
        assert answer.status_code == status
    assert list(site.settings.uploads_dir.iterdir()) == []


@pytest.fixture
def left_over(settings: ServerSettings) -> Path:
    """The folder of an upload whose process was killed."""
    folder = settings.uploads_dir / "upload-killed"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"half")
    return folder


def test_what_a_killed_process_left_is_swept_at_start(left_over: Path, site: Any) -> None:
    assert site.http.get("/livez").status_code == 200
    assert not left_over.exists()


def test_an_upload_must_have_exactly_the_two_files(site: Any, acme: str, lora: Lora) -> None:
    site.create_adapter(acme, "bot")
    files = lora()
    config, tensors = "adapter_config.json", "adapter_model.safetensors"
    missing = site.upload(acme, "bot", {config: files[config]})
    assert missing.json()["error"]["param"] == tensors
    extra = site.upload(acme, "bot", {**files, "../../evil": b"x"})
    assert extra.status_code == 400
    path = "/v1/adapters/bot/versions"
    assert site.call(acme, "POST", path, json={}).status_code == 400
    headers = {"content-type": "multipart/form-data; boundary=b"}
    broken = site.call(acme, "POST", path, content=b"--b\r\nnonsense", headers=headers)
    assert broken.status_code == 400
    renamed = [("file", (config, files[config])), ("file", (tensors, files[tensors]))]
    assert site.call(acme, "POST", path, files=renamed).status_code == 201
