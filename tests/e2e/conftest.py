"""A real server process on the demo base, driven over loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from weft.demo import ADAPTERS_DIR, BASE_DIR, BASE_NAME
from weft.tenancy.secret_files import read_or_create_secrets

START_TIMEOUT_S = 90.0
FILES = ("adapter_config.json", "adapter_model.safetensors")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass
class Server:
    """`weft serve` as a process of its own on one data folder; restartable."""

    data_dir: Path
    options: list[str] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def operator_key(self) -> str:
        return read_or_create_secrets(self.data_dir).operator_key

    def start(self) -> None:
        command = [sys.executable, "-m", "weft.cli", "serve", "--base", str(BASE_DIR)]
        command += ["--base-name", BASE_NAME, "--data", str(self.data_dir)]
        command += ["--port", str(self.port), "--threads", "1", *self.options]
        log = (self.data_dir.parent / "server.log").open("ab")
        with log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self.data_dir.parent / "server.log").read_text())
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def send(self, number: signal.Signals) -> int:
        """Signal the process and wait for its end; its exit status."""
        assert self.process is not None
        os.kill(self.process.pid, number)
        return self.process.wait(timeout=60)

    def admin(self) -> httpx2.Client:
        headers = {"authorization": f"Bearer {self.operator_key}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60)

    def client(self, key: str) -> httpx2.Client:
        headers = {"authorization": f"Bearer {key}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60)

    def create_tenant(self, name: str) -> str:
        """A tenant with one key of all scopes: the key."""
        with self.admin() as http:
            tenant = http.post("/admin/v1/tenants", json={"name": name})
            assert tenant.status_code == 201, tenant.text
            key = http.post(f"/admin/v1/tenants/{tenant.json()['id']}/keys", json={"name": "all"})
            assert key.status_code == 201, key.text
        value: str = key.json()["value"]
        return value

    def upload(self, key: str, adapter: str, **files: bytes) -> httpx2.Response:
        """Upload a demo adapter (or other bytes of its files) as a version of `adapter`."""
        with self.client(key) as http:
            if http.get(f"/v1/adapters/{adapter}").status_code == 404:
                body = {"name": adapter, "base_model": BASE_NAME}
                assert http.post("/v1/adapters", json=body).status_code == 201
            folder = ADAPTERS_DIR / adapter
            parts = {
                "adapter_config.json": files.get("config"),
                "adapter_model.safetensors": files.get("tensors"),
            }
            sent = {
                name: (name, (folder / name).read_bytes() if part is None else part)
                for name, part in parts.items()
            }
            return http.post(f"/v1/adapters/{adapter}/versions", files=sent)

    def ask(self, key: str, model: str, prompt: str, **body: Any) -> httpx2.Response:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 64, **body}
        with self.client(key) as http:
            return http.post("/v1/chat/completions", json=body)


def answer_of(response: httpx2.Response) -> str:
    assert response.status_code == 200, response.text
    content: str = response.json()["choices"][0]["message"]["content"]
    return content


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for a module's tests."""
    server = Server(tmp_path_factory.mktemp("server") / "data")
    server.start()
    yield server
    assert server.process is not None
    if server.process.poll() is None:
        server.send(signal.SIGTERM)


@pytest.fixture(scope="module")
def acme(server: Server) -> str:
    """A tenant that owns `shout`: its key."""
    key = server.create_tenant("acme")
    assert server.upload(key, "shout").status_code == 201
    return key


@pytest.fixture(scope="module")
def globex(server: Server) -> str:
    """Another tenant, that owns `mirror`: its key."""
    key = server.create_tenant("globex")
    assert server.upload(key, "mirror").status_code == 201
    return key
