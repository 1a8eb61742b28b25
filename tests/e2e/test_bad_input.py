"""Bad input gets a clear OpenAI-shaped error, and nothing changes."""

from __future__ import annotations

import json
import pickle
import struct
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import pytest
from safetensors.numpy import load_file, save

from weft.demo import ADAPTERS_DIR, BASE_NAME

if TYPE_CHECKING:
    from tests.e2e.conftest import Server

pytestmark = pytest.mark.slow

CONFIG = ADAPTERS_DIR / "shout" / "adapter_config.json"
TENSORS = ADAPTERS_DIR / "shout" / "adapter_model.safetensors"
PROMPT = "wolf apple tiger"


def error_of(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    assert error["code"] == code
    assert "Traceback" not in error["message"]
    return error


def tensors() -> dict[str, np.ndarray[Any, Any]]:
    return load_file(TENSORS)


def renamed() -> bytes:
    found = tensors()
    name = sorted(found)[0]
    return save({**found, name.replace("q_proj", "zz_proj"): found[name]})


def for_another_base() -> bytes:
    return save({k: np.concatenate([v, v], axis=1) for k, v in tensors().items()})


def with_nan() -> bytes:
    found = tensors()
    name = sorted(found)[0]
    found[name] = found[name].copy()
    found[name][0, 0] = np.nan
    return save(found)


def with_config(**changes: object) -> bytes:
    return json.dumps({**json.loads(CONFIG.read_bytes()), **changes}).encode()


def versions(server: Server, key: str) -> list[tuple[str, str]]:
    """(id, state) of each of `shout`; their reports may still gain what a comparison shows."""
    with server.client(key) as http:
        listed = http.get("/v1/adapters/shout/versions").json()["data"]
    return [(version["id"], version["state"]) for version in listed]


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        pytest.param({"tensors": TENSORS.read_bytes()[:100]}, "header", id="truncated header"),
        pytest.param({"tensors": TENSORS.read_bytes()[:-8]}, "", id="truncated data"),
        pytest.param(
            {"tensors": struct.pack("<Q", 2**63) + TENSORS.read_bytes()[8:]},
            "header",
            id="oversized header",
        ),
        pytest.param({"tensors": pickle.dumps({"a": 1})}, "pickle", id="pickle renamed"),
        pytest.param({"tensors": renamed()}, "zz_proj", id="maps to no site"),
        pytest.param({"config": with_config(r=8)}, "rank", id="wrong rank"),
        pytest.param({"tensors": for_another_base()}, "shape", id="another base"),
        pytest.param({"tensors": with_nan()}, "NaN", id="NaN"),
        pytest.param({"config": with_config(use_dora=True)}, "use_dora", id="DoRA"),
        pytest.param({"config": b"{not json"}, "JSON", id="config is no JSON"),
    ],
)
def test_a_bad_adapter_is_refused_with_its_faults(
    server: Server, acme: str, files: dict[str, bytes], fault: str
) -> None:
    before = versions(server, acme)
    error = error_of(server.upload(acme, "shout", **files), 422, "adapter_invalid")
    assert error["details"]
    assert fault in json.dumps(error["details"])
    assert versions(server, acme) == before
    choice = server.ask(acme, "shout", PROMPT).json()["choices"][0]
    assert choice["message"]["content"] == "WOLF APPLE TIGER"


def test_an_adapter_for_a_base_that_is_not_served_is_refused(server: Server, acme: str) -> None:
    with server.client(acme) as http:
        response = http.post("/v1/adapters", json={"name": "x", "base_model": "llama"})
        assert response.status_code in (400, 404)
        assert response.json()["error"]["param"] == "base_model"
        assert http.get("/v1/adapters/x").status_code == 404


def test_an_unknown_model_and_another_tenants_adapter_get_the_same_404(
    server: Server, acme: str, globex: str
) -> None:
    theirs = error_of(server.ask(acme, "mirror", PROMPT), 404, "model_not_found")
    unknown = error_of(server.ask(acme, "nobody", PROMPT), 404, "model_not_found")
    assert theirs["message"].replace("mirror", "nobody") == unknown["message"]
    assert {**theirs, "message": ""} == {**unknown, "message": ""}
    with server.client(acme) as http:
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/versions/1")):
            a = http.request(method, f"/v1/adapters/mirror{path}")
            b = http.request(method, f"/v1/adapters/nobody{path}")
            assert a.status_code == b.status_code == 404
            assert a.text.replace("mirror", "nobody") == b.text
    assert server.ask(globex, "mirror", PROMPT).status_code == 200


def test_a_prompt_over_the_context_length_is_refused(server: Server, acme: str) -> None:
    error = error_of(server.ask(acme, "shout", "a " * 1000), 400, "context_length_exceeded")
    assert "1024" in error["message"]


def test_invalid_json_is_refused(server: Server, acme: str) -> None:
    headers = {"content-type": "application/json"}
    with server.client(acme) as http:
        response = http.post("/v1/chat/completions", content=b'{"model": ', headers=headers)
    error_of(response, 400, "invalid_json")


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer weft_live_wrong"}])
def test_a_missing_or_wrong_key_is_refused_the_same_way(
    server: Server, headers: dict[str, str]
) -> None:
    body = {"model": BASE_NAME, "prompt": "a"}
    response = httpx2.post(f"{server.url}/v1/completions", json=body, headers=headers)
    error_of(response, 401, "invalid_api_key")


def test_admin_and_inference_keys_do_not_cross(server: Server, acme: str) -> None:
    error_of(server.ask(server.operator_key, BASE_NAME, PROMPT), 403, "insufficient_permissions")
    with server.client(acme) as http:
        response = http.post("/admin/v1/tenants", json={"name": "mine"})
    error_of(response, 403, "insufficient_permissions")
