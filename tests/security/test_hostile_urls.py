"""URLs inside of requests: the server looks up no name and connects to nobody for one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.gateway.site import Site
from tests.security.world import Tenant, create_tenant, headers_for

URL = "http://169.254.169.254/latest/meta-data"
# where OpenAI's, vLLM's or LoRAX's requests have one, or might
CHAT_FIELDS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": [part]}]}
    for part in (
        {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
        {"type": "input_image", "image_url": URL},
        {"type": "video_url", "video_url": {"url": URL}},
        {"type": "audio_url", "audio_url": {"url": URL}},
        {"type": "input_audio", "input_audio": {"data": URL, "format": "wav"}},
        {"type": "file", "file": {"file_url": URL, "file_id": URL}},
    )
]
FIELDS: list[dict[str, Any]] = [
    {"model": URL},
    {"adapter_id": URL},
    {"merged_adapters": {"ids": [URL, URL], "weights": [1.0, 1.0]}},
    {"response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "schema": {"$ref": URL}
    }}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
        "$schema": URL, "$id": URL, "type": "object", "properties": {"a": {"$ref": f"{URL}#/x"}}
    }}}},
    {"guided_json": {"$ref": URL}},
    {"tools": [{"type": "mcp", "server_label": "x", "server_url": URL}]},
    {"tools": [{"type": "function", "function": {"name": URL, "parameters": {"$ref": URL}}}]},
    {"web_search_options": {"user_location": URL}},
    {"documents": [{"url": URL}]},
    {"chat_template": URL},
    {"audio": {"voice": URL}},
    {"prediction": {"type": "content", "content": URL}},
    {"api_base": URL},
    {"user_config": {"api_base": URL}},
    {"webhook": URL},
    {"metadata": {"url": URL}, "user": URL, "prompt_cache_key": URL, "safety_identifier": URL},
]  # fmt: skip
LORAX_FIELDS: list[dict[str, Any]] = [
    {"adapter_id": URL},
    {"adapter_source": URL, "adapter_id": URL},
    {"adapter_source": "s3", "adapter_id": URL, "api_token": URL},
    {"response_format": {"type": "json_object", "schema": {"$ref": URL}}},
]


class Outgoing:
    """Names that were looked up and addresses that were connected to, but for the server's own."""

    def __init__(self, own_port: int) -> None:
        self._own_port = own_port
        self.is_on = True
        self.seen: list[tuple[str, Any]] = []
        sys.addaudithook(self._hear)  # which stays to the process's end

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on or event not in ("socket.connect", "socket.getaddrinfo"):
            return
        target = arguments[1] if event == "socket.connect" else arguments[:2]
        is_own = isinstance(target, tuple) and target[1] == self._own_port
        if not is_own and isinstance(target, tuple):  # others are sockets of this machine
            self.seen.append((event, target))


@pytest.fixture
def outgoing(site: Site) -> Iterator[Outgoing]:
    port = urlsplit(site.url).port
    assert port is not None
    heard = Outgoing(port)
    yield heard
    heard.is_on = False


@pytest.fixture(scope="module")
def tenant(site: Site) -> Iterator[Tenant]:
    tenant = create_tenant(site, "fetcher")
    yield tenant
    tenant.browser.close()


def test_38_no_url_in_an_inference_request_is_fetched(
    site: Site, mallory: str, outgoing: Outgoing
) -> None:
    chat = {"messages": [{"role": "user", "content": URL}]}
    sent: list[tuple[str, dict[str, Any]]] = [
        *(("/v1/chat/completions", field) for field in CHAT_FIELDS),
        *(("/v1/chat/completions", chat | field) for field in FIELDS),
        *(("/v1/completions", {"prompt": URL} | field) for field in FIELDS),
        *(("/generate", {"inputs": URL, "parameters": field}) for field in LORAX_FIELDS),
        ("/v1/load_lora_adapter", {"lora_name": "bot", "lora_path": URL}),
    ]
    for path, body in sent:
        model = {} if path.startswith(("/generate", "/v1/load")) else {"model": "tiny"}
        answer = site.call(mallory, "POST", path, json={**model, "max_tokens": 2, **body})
        assert answer.status_code < 500, (path, body, answer.text)
    assert outgoing.seen == []


@pytest.mark.parametrize("body", CHAT_FIELDS)
def test_38_parts_that_are_no_text_are_refused_by_name(
    site: Site, mallory: str, body: dict[str, Any]
) -> None:
    answer = site.call(mallory, "POST", "/v1/chat/completions", json={"model": "tiny", **body})
    error = answer.json()["error"]
    kind = body["messages"][0]["content"][0]["type"]
    assert (answer.status_code, error["param"]) == (400, "messages[0].content")
    assert f"'{kind}'" in error["message"]


def test_38_no_field_of_a_tenants_request_is_fetched(
    site: Site, tenant: Tenant, outgoing: Outgoing
) -> None:
    """Whatever can be a text is the URL, in every body that the API describes."""
    document = site.http.get("/openapi.json").json()
    num_sent = 0
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {})
            if path.startswith("/admin/") or "application/json" not in content:
                continue
            body = filled(content["application/json"]["schema"], document)
            target = path
            for kind, name in tenant.ids.items():
                target = target.replace(f"{{{kind[:-1]}}}", name)
            headers = headers_for(site, tenant, path, operation)
            answer = site.http.request(method.upper(), target, json=body, headers=headers)
            assert answer.status_code < 500, (method, path, answer.text)
            num_sent += 1
    assert num_sent > 20
    assert outgoing.seen == []


def test_38_what_is_fetched_would_be_seen(outgoing: Outgoing) -> None:
    """The test's own eyes."""
    import socket

    with socket.socket() as sock, pytest.raises(OSError, match="refused|unreachable"):
        sock.connect(("127.0.0.1", 1))
    socket.getaddrinfo("127.0.0.1", 80)
    assert [event for event, _ in outgoing.seen] == ["socket.connect", "socket.getaddrinfo"]


def filled(schema: dict[str, Any], document: Any, depth: int = 0) -> Any:
    """A value with every property that the schema knows; whatever can be a text is the URL."""
    if "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return filled(found, document, depth + 1)
    several = [choice for key in ("anyOf", "oneOf", "allOf") for choice in schema.get(key, ())]
    if several:
        texts = [choice for choice in several if choice.get("type") == "string"]
        return filled((texts or several)[0], document, depth + 1)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    kind = schema.get("type", "object")
    if kind == "object":
        known = schema.get("properties", {}) if depth < 8 else {}
        return {name: filled(each, document, depth + 1) for name, each in known.items()}
    if kind == "array":
        return [filled(schema.get("items", {}), document, depth + 1)]
    if kind == "string":
        return URL
    return {"integer": 1, "number": 1.0, "boolean": False}.get(kind)
