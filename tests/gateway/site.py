"""The app over real loopback HTTP, and what a test needs to talk to it."""

from __future__ import annotations

import shutil
import sqlite3
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
from fastapi import FastAPI
from tests.gateway.echo import EchoEngine
from tests.tiny import BASE

from weft.app import create_app
from weft.demo.tokens import write_tokenizer
from weft.server.http import background_server
from weft.settings import ServerSettings
from weft.tokenizer import BaseTokenizer

# trusts nobody: reading the authorities takes a client longer than most tests do
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@dataclass
class Site:
    """A running server and what a test needs to talk to it."""

    url: str
    app: FastAPI
    engine: EchoEngine
    settings: ServerSettings
    operator_key: str
    http: httpx2.Client
    _clients: list[openai.OpenAI] = field(default_factory=list)

    def tenant(self, name: str, scopes: list[str] | None = None) -> str:
        """A new tenant's key."""
        self.operator("POST", "/admin/v1/tenants", json={"name": name}).raise_for_status()
        return self.key(name, scopes)

    def key(self, tenant: str, scopes: list[str] | None = None) -> str:
        body = {} if scopes is None else {"scopes": scopes}
        answer = self.operator("POST", f"/admin/v1/tenants/{tenant}/keys", json=body)
        answer.raise_for_status()
        return str(answer.json()["value"])

    def operator(self, method: str, path: str, **kwargs: Any) -> httpx2.Response:
        return self.call(self.operator_key, method, path, **kwargs)

    def call(self, key: str | None, method: str, path: str, **kwargs: Any) -> httpx2.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        headers.update(kwargs.pop("headers", {}))
        return self.http.request(method, path, headers=headers, **kwargs)

    def client(self, key: str) -> openai.OpenAI:
        http = httpx2.Client(verify=NO_TLS)
        client = openai.OpenAI(
            api_key=key, base_url=f"{self.url}/v1", max_retries=0, http_client=http
        )
        self._clients.append(client)
        return client

    def usage(self, key: str) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = self.call(key, "GET", "/v1/usage").json()["data"][0][
            "results"
        ]
        return results

    def create_adapter(self, key: str, name: str) -> None:
        body = {"name": name, "base_model": BASE}
        self.call(key, "POST", "/v1/adapters", json=body).raise_for_status()

    def upload(self, key: str, name: str, files: dict[str, bytes]) -> httpx2.Response:
        parts = [(part, (part, data)) for part, data in files.items()]
        return self.call(key, "POST", f"/v1/adapters/{name}/versions", files=parts)

    def forget_clients(self) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()

    def close(self) -> None:
        self.forget_clients()
        self.http.close()


@contextmanager
def running_site(settings: ServerSettings, tokenizer: BaseTokenizer) -> Iterator[Site]:
    engine = EchoEngine()
    app = create_app(settings, engine, tokenizer)
    with background_server(app, settings) as url:
        operator_key = (settings.data_dir / "operator_key").read_text().strip()
        http = httpx2.Client(base_url=url, timeout=20.0, verify=NO_TLS)
        running = Site(url, app, engine, settings, operator_key, http)
        yield running
        running.close()


def create_settings(root: Path, migrated: Path) -> ServerSettings:
    """Of a site in a folder of its own, whose database is a copy of the migrated one."""
    (root / "data").mkdir()
    shutil.copy(migrated, root / "data" / "weft.db")
    return ServerSettings(
        base_dir=root / "base",
        data_dir=root / "data",
        port=0,
        keepalive_s=0.2,
        queue_timeout_s=30.0,
        request_timeout_s=60.0,
        max_upload_bytes=200_000,
        max_body_bytes=100_000,
        smoke_check=False,
    )


def create_tokenizer(root: Path) -> BaseTokenizer:
    folder = root / "base"
    folder.mkdir()
    write_tokenizer(folder)
    return BaseTokenizer.from_dir(folder)


@dataclass
class SharedSite:
    """A site for many tests, one at a time, that forgets what each of them did."""

    site: Site
    _start: Path

    @classmethod
    def of(cls, site: Site) -> SharedSite:
        """As it is now."""
        start = site.settings.data_dir.parent / "start.db"
        with ExitStack() as stack:
            live = stack.enter_context(closing(sqlite3.connect(site.settings.database_file)))
            live.backup(stack.enter_context(closing(sqlite3.connect(start))))
        return cls(site, start)

    def reset(self) -> None:
        """The database's pages, the stored adapters and the engine are as at the start. Nothing in
        the server's memory is of use without its rows: ids and keys are drawn anew."""
        file = self.site.settings.database_file
        with ExitStack() as stack:
            start = stack.enter_context(closing(sqlite3.connect(self._start, timeout=20.0)))
            start.execute("ATTACH ? AS live", (str(file),))
            # the server is not to be taken for dead, as a heartbeat of long ago would have it
            start.execute(
                "UPDATE main.replicas AS own SET heartbeat_at_ms = beat.heartbeat_at_ms "
                "FROM live.replicas AS beat WHERE beat.id = own.id"
            )
            start.commit()
            start.execute("DETACH live")
            start.backup(stack.enter_context(closing(sqlite3.connect(file, timeout=20.0))))
        for folder in (self.site.settings.adapters_dir, self.site.settings.uploads_dir):
            for path in folder.glob("*"):
                shutil.rmtree(path, ignore_errors=True)  # the server may be removing it, too
        self.site.forget_clients()
        EchoEngine.__init__(self.site.engine)
