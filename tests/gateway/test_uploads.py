"""Files in parts, as OpenAI's own client sends them, and versions made of them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.site import Site

Lora = Callable[..., dict[str, bytes]]
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def site(shared_site: Site) -> Site:
    return shared_site


def begin(site: Any, key: str, filename: str, num_bytes: int) -> Any:
    body = {"purpose": "adapter", "filename": filename, "bytes": num_bytes}
    return site.call(key, "POST", "/v1/uploads", json=body)


def add(site: Any, key: str, upload_id: str, data: bytes) -> Any:
    path = f"/v1/uploads/{upload_id}/parts"
    return site.call(key, "POST", path, files=[("data", ("blob", data))])


def send(site: Any, key: str, filename: str, data: bytes, size: int = 400) -> str:
    """A whole upload; gives its id."""
    upload_id = str(begin(site, key, filename, len(data)).json()["id"])
    chunks = [data[i : i + size] for i in range(0, len(data), size)]
    part_ids = [add(site, key, upload_id, chunk).json()["id"] for chunk in chunks]
    path = f"/v1/uploads/{upload_id}/complete"
    site.call(key, "POST", path, json={"part_ids": part_ids}).raise_for_status()
    return upload_id


def import_uploads(site: Any, key: str, *upload_ids: str, **headers: str) -> Any:
    body = {"source": {"type": "upload", "upload_ids": list(upload_ids)}}
    path = "/v1/adapters/bot/versions"
    return site.call(key, "POST", path, json=body, headers=headers)


def settled(site: Any, key: str, number: int) -> dict[str, Any]:
    """The version when it is ready or rejected, and the import over."""
    importer = site.app.state.registry.importer
    for _ in range(500):
        answer = site.call(key, "GET", f"/v1/adapters/bot/versions/{number}")
        version: dict[str, Any] = answer.json()
        if version["state"] not in ("uploading", "validating") and not importer.num_running:
            return version
        time.sleep(0.01)
    raise AssertionError(f"still {version['state']}")


@pytest.fixture
def bot(site: Any, acme: str) -> str:
    """A tenant's key, with an adapter."""
    site.create_adapter(acme, "bot")
    return acme


def test_openais_client_uploads_in_parts(site: Any, bot: str, lora: Lora, tmp_path: Path) -> None:
    client = site.client(bot)
    upload_ids = []
    for name, data in lora().items():
        (tmp_path / name).write_bytes(data)
        upload = client.uploads.upload_file_chunked(
            file=tmp_path / name,
            mime_type="application/octet-stream",
            purpose="adapter",
            part_size=300,
            md5=hashlib.md5(data).hexdigest(),
        )
        assert (upload.status, upload.file.filename, upload.bytes) == ("completed", name, len(data))
        upload_ids.append(upload.id)
    promised = import_uploads(site, bot, *upload_ids)
    assert promised.status_code == 202
    assert promised.headers["location"] == "/v1/adapters/bot/versions/1"
    assert promised.json()["state"] in ("uploading", "validating", "ready")
    version = settled(site, bot, 1)
    assert version["state"] == "ready"
    assert version["source"] == {"type": "upload", "upload_ids": upload_ids}
    assert site.engine.prefetched == [version["digest"]]
    # the same bytes by another way are the same version
    assert site.upload(bot, "bot", lora()).json()["digest"] == version["digest"]
    for upload_id in upload_ids:
        assert site.call(bot, "GET", f"/v1/uploads/{upload_id}").json()["status"] == "expired"
    assert list(site.settings.uploads_dir.glob("parts/*")) == []


def test_an_upload_goes_on_where_it_was(site: Any, bot: str) -> None:
    upload_id = begin(site, bot, TENSORS, 10).json()["id"]
    late = add(site, bot, upload_id, b"56789").json()["id"]
    found = site.call(bot, "GET", f"/v1/uploads/{upload_id}").json()
    assert found["status"] == "pending"
    assert [(part["id"], part["bytes"]) for part in found["parts"]] == [(late, 5)]
    early = add(site, bot, upload_id, b"01234").json()["id"]
    complete = f"/v1/uploads/{upload_id}/complete"
    md5 = hashlib.md5(b"0123456789").hexdigest()
    wrong = site.call(bot, "POST", complete, json={"part_ids": [late, early], "md5": md5})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "md5")
    for _ in range(2):  # a repeated call finds it done
        done = site.call(bot, "POST", complete, json={"part_ids": [early, late], "md5": md5})
        assert done.json()["status"] == "completed"
    assert add(site, bot, upload_id, b"x").status_code == 400


def test_parts_are_held_to_what_was_announced(site: Any, bot: str) -> None:
    assert begin(site, bot, "model.bin", 10).json()["error"]["param"] == "filename"
    assert begin(site, bot, "../" + CONFIG, 10).json()["error"]["param"] == "filename"
    assert begin(site, bot, TENSORS, 300_000).status_code == 413
    assert begin(site, bot, TENSORS, 0).status_code == 400
    upload_id = begin(site, bot, TENSORS, 10).json()["id"]
    first = add(site, bot, upload_id, b"0123456").json()["id"]
    assert add(site, bot, upload_id, b"789a").status_code == 413
    complete = f"/v1/uploads/{upload_id}/complete"
    for part_ids in ([first], [first, first], [first, "part_x"], []):
        answer = site.call(bot, "POST", complete, json={"part_ids": part_ids})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "part_ids")
    nameless = site.call(
        bot, "POST", f"/v1/uploads/{upload_id}/parts", files=[("x", ("x", b"789"))]
    )
    assert nameless.status_code == 400


def test_a_cancelled_upload_is_gone(site: Any, bot: str) -> None:
    upload_id = begin(site, bot, TENSORS, 4).json()["id"]
    part_id = add(site, bot, upload_id, b"0123").json()["id"]
    assert len(list(site.settings.uploads_dir.glob(f"parts/{upload_id}/*"))) == 1
    for _ in range(2):
        cancelled = site.call(bot, "POST", f"/v1/uploads/{upload_id}/cancel")
        assert cancelled.json()["status"] == "cancelled"
    assert list(site.settings.uploads_dir.glob("parts/*")) == []
    path = f"/v1/uploads/{upload_id}/complete"
    assert site.call(bot, "POST", path, json={"part_ids": [part_id]}).status_code == 400
    refused = import_uploads(site, bot, upload_id)
    assert refused.json()["error"]["code"] == "source_not_found"


def test_another_tenants_upload_looks_like_none(site: Any, bot: str, lora: Lora) -> None:
    other = site.tenant("other")
    site.create_adapter(other, "bot")
    upload_ids = [send(site, bot, name, data) for name, data in lora().items()]
    for method, path, body in (
        ("GET", "", None),
        ("POST", "/complete", {"part_ids": ["p"]}),
        ("POST", "/cancel", None),
    ):
        mine = site.call(other, method, f"/v1/uploads/{upload_ids[0]}{path}", json=body)
        none = site.call(other, method, f"/v1/uploads/upload_x{path}", json=body)
        assert mine.status_code == none.status_code == 404
        assert mine.content.replace(upload_ids[0].encode(), b"upload_x") == none.content
    assert add(site, other, upload_ids[0], b"x").status_code == 404
    assert import_uploads(site, other, *upload_ids).json()["error"]["code"] == "source_not_found"
    assert import_uploads(site, bot, *upload_ids).status_code == 202


def test_a_bad_adapter_is_a_rejected_version_with_each_fault(
    site: Any, bot: str, lora: Lora
) -> None:
    files = lora(rank=32)
    upload_ids = [send(site, bot, name, data) for name, data in files.items()]
    first = import_uploads(site, bot, *upload_ids, **{"idempotency-key": "k"})
    assert first.status_code == 202
    version = settled(site, bot, 1)
    assert (version["state"], version["digest"]) == ("rejected", None)
    assert [fault["code"] for fault in version["report"]["faults"]] == ["rank_too_large"]
    chat = {"model": "bot@v1", "messages": [{"role": "user", "content": "hi"}]}
    assert site.call(bot, "POST", "/v1/chat/completions", json=chat).status_code == 404
    put = site.call(bot, "PUT", "/v1/adapters/bot/aliases/prod", json={"version": 1})
    assert put.json()["error"]["code"] == "version_not_ready"
    listed = site.call(bot, "GET", "/v1/adapters/bot/versions").json()["data"]
    assert [(v["version"], v["state"]) for v in listed] == [(1, "rejected")]


def test_an_import_of_bytes_that_are_there_says_so(site: Any, bot: str, lora: Lora) -> None:
    site.upload(bot, "bot", lora())
    upload_ids = [send(site, bot, name, data) for name, data in lora().items()]
    answers = [import_uploads(site, bot, *upload_ids, **{"idempotency-key": "k"})]
    assert answers[0].json()["version"] == 2
    (fault,) = settled(site, bot, 2)["report"]["faults"]
    assert fault["code"] == "duplicate"
    assert "version 1" in fault["message"]


@pytest.mark.parametrize(
    ("source", "param", "code"),
    [
        ({"type": "huggingface", "repo": "a/b", "revision": "main"}, "source.revision", None),
        ({"type": "huggingface", "repo": "a/b", "revision": "A" * 40}, "source.revision", None),
        ({"type": "huggingface", "repo": "../b", "revision": "a" * 40}, "source.repo", None),
        ({"type": "huggingface", "repo": "a/b/c", "revision": "a" * 40}, "source.repo", None),
        ({"type": "huggingface", "repo": "a/b?x#", "revision": "a" * 40}, "source.repo", None),
        ({"type": "huggingface", "repo": "a/b"}, "source.revision", None),
        ({"type": "s3", "uri": "s3://bucket/folder"}, "source", "source_not_allowed"),
        ({"type": "s3", "uri": "https://bucket/folder"}, "source.uri", None),
        ({"type": "s3", "uri": "s3://bucket/a/../b"}, "source.uri", None),
        ({"type": "upload", "upload_ids": []}, "source.upload_ids", None),
        ({"type": "upload", "upload_ids": ["x"]}, "source", "source_not_found"),
        ({"type": "url", "url": "http://169.254.169.254/"}, "source", None),
        ({"type": "upload", "upload_ids": ["x"], "url": "x"}, "source.url", "unknown_parameter"),
        ("file:///etc/passwd", "source", None),
    ],
)
def test_a_bad_source_is_refused_at_once(
    site: Any, bot: str, source: object, param: str, code: str | None
) -> None:
    answer = site.call(bot, "POST", "/v1/adapters/bot/versions", json={"source": source})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["code"] == (code or "invalid_value")
    assert site.call(bot, "GET", "/v1/adapters/bot/versions").json()["data"] == []


def test_a_key_promises_one_version(site: Any, bot: str, lora: Lora) -> None:
    upload_ids = [send(site, bot, name, data) for name, data in lora().items()]
    answers = [import_uploads(site, bot, *upload_ids, **{"idempotency-key": "k"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 202]
    assert {answer.json()["version"] for answer in answers} == {1}
    conflict = import_uploads(site, bot, upload_ids[0], **{"idempotency-key": "k"})
    assert conflict.json()["error"]["code"] == "idempotency_conflict"
    assert settled(site, bot, 1)["state"] == "ready"
