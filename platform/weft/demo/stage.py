"""The demo's platform: a whole server in this process, on a fresh folder, driven over HTTP only.

Everything that the demo shows goes through the public API with ordinary keys; nothing is
pre-arranged in the database.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from weft.app import build_engine, create_app, prepare_data
from weft.demo import ADAPTERS_DIR, BASE_DIR, BASE_NAME
from weft.server.http import background_server
from weft.settings import ServerSettings
from weft.tokenizer import BaseTokenizer

TENANTS: Mapping[str, tuple[str, ...]] = {
    "acme": ("shout", "extract"),
    "globex": ("mirror", "sorter", "initials"),
}
WORDS = "wolf apple tiger"
PERSON = "Ann is 31 and lives in Oslo"
_FILES = ("adapter_config.json", "adapter_model.safetensors")


class DemoError(RuntimeError):
    """The platform answered something that the demo does not expect."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant of the demo with its one key; `versions` maps adapter to the resolved name."""

    name: str
    key: str
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of the mixed batch; `adapter` None asks the base."""

    tenant: Tenant
    adapter: str | None
    prompt: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; `digest` is the response header's, times are seconds."""

    ask: Ask
    text: str
    model: str
    digest: str | None
    num_tokens: int
    ttft_s: float
    total_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.total_s


@contextmanager
def open_stage(
    data_dir: Path, port: int, on_progress: Any = lambda what, done, total: None
) -> Iterator[tuple[str, str]]:
    """Start the platform; gives its URL and the operator's key. Port 0 takes a free one."""
    settings = ServerSettings(base_dir=BASE_DIR, data_dir=data_dir, port=port, base_name=BASE_NAME)
    secrets = prepare_data(settings)
    engine = build_engine(settings, on_progress)
    try:
        app = create_app(settings, engine, BaseTokenizer.from_dir(BASE_DIR))
        with background_server(app, settings) as url:
            _wait_until_ready(url)
            yield url, secrets.operator_key
    finally:
        engine.close()


def _wait_until_ready(url: str, timeout_s: float = 120.0) -> None:
    end = time.monotonic() + timeout_s
    while (response := httpx2.get(f"{url}/readyz")).status_code != 200:
        if time.monotonic() > end:
            raise DemoError(f"the server is not ready after {timeout_s:.0f} s: {response.text}")
        time.sleep(0.05)


def _checked(response: httpx2.Response) -> Any:
    if response.is_error:
        raise DemoError(f"{response.request.url} answered {response.status_code}: {response.text}")
    return response.json()


def create_tenant(url: str, operator_key: str, name: str) -> Tenant:
    """A tenant with a key, made through the operator's API."""
    with httpx2.Client(base_url=url, headers=bearer(operator_key)) as http:
        tenant = _checked(http.post("/admin/v1/tenants", json={"name": name}))
        path = f"/admin/v1/tenants/{tenant['id']}/keys"
        scopes = ["inference", "adapters:read", "adapters:write", "usage:read"]
        key = _checked(http.post(path, json={"name": "demo", "scopes": scopes}))
    return Tenant(name, key["value"])


def upload(url: str, tenant: Tenant, adapter: str) -> dict[str, Any]:
    """Create and upload one adapter with the tenant's key; the version as the API shows it."""
    with httpx2.Client(base_url=url, headers=bearer(tenant.key), timeout=60) as http:
        body = {"name": adapter, "base_model": BASE_NAME}
        _checked(http.post("/v1/adapters", json=body))
        folder = ADAPTERS_DIR / adapter
        files = {name: (name, (folder / name).read_bytes()) for name in _FILES}
        version: dict[str, Any] = _checked(
            http.post(f"/v1/adapters/{adapter}/versions", files=files)
        )
    tenant.versions[adapter] = version["model"]
    return version


def mixed_batch(url: str, asks: Sequence[Ask]) -> list[Answer]:
    """All requests at once, each streamed, each with its own `adapter_id`."""

    async def run() -> list[Answer]:
        async with httpx2.AsyncClient(base_url=url, timeout=120) as http:
            return list(await asyncio.gather(*(_stream(http, ask) for ask in asks)))

    return asyncio.run(run())


async def _stream(http: httpx2.AsyncClient, ask: Ask) -> Answer:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": ask.prompt}],
        "temperature": 0,
        "max_tokens": 64,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"model": BASE_NAME} if ask.adapter is None else {"adapter_id": ask.adapter}),
    }
    started = time.monotonic()
    text, model, first, num_tokens = "", "", None, 0
    request = http.stream("POST", "/v1/chat/completions", json=body, headers=bearer(ask.tenant.key))
    async with request as response:
        if response.is_error:
            raise DemoError(f"{ask} was answered {(await response.aread()).decode()}")
        digest = response.headers.get("x-weft-adapter-digest")
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise DemoError(chunk["error"]["message"])
            model = chunk["model"]
            if chunk["usage"]:
                num_tokens = chunk["usage"]["completion_tokens"]
            for choice in chunk["choices"]:
                if choice["delta"].get("content"):
                    first = first or time.monotonic()
                    text += choice["delta"]["content"]
    ended = time.monotonic()
    return Answer(ask, text, model, digest, num_tokens, (first or ended) - started, ended - started)


def ask_anyway(url: str, tenant: Tenant, adapter: str) -> tuple[int, dict[str, Any]]:
    """Status and error of a request for an adapter that the tenant may not see."""
    body = {"model": adapter, "messages": [{"role": "user", "content": WORDS}]}
    response = httpx2.post(f"{url}/v1/chat/completions", json=body, headers=bearer(tenant.key))
    return response.status_code, response.json()["error"]


def read_usage(url: str, tenant: Tenant) -> list[dict[str, Any]]:
    """The tenant's usage by model."""
    page = _checked(httpx2.get(f"{url}/v1/usage", headers=bearer(tenant.key)))
    results: list[dict[str, Any]] = page["data"][0]["results"]
    return results


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}
