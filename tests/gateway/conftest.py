"""The app over real loopback HTTP, with an engine that echoes."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi import FastAPI
from pwdlib.hashers.argon2 import Argon2Hasher
from tests.tiny import BASE, BASE_DIGEST, HF_CONFIG, create_lora

from weft.app import create_app
from weft.db.schema import prepare
from weft.db.urls import sqlite_url
from weft.demo.tokens import write_tokenizer
from weft.messages import (
    AdapterPlacement,
    EngineDeadError,
    EngineDrainingError,
    EngineInfo,
    EngineOutput,
    EngineQueueFullError,
    EngineRequest,
    EngineStats,
    ErrorCode,
    FinishReason,
    Grammar,
    TokenLogprobs,
    Usage,
)
from weft.server.http import background_server
from weft.settings import ServerSettings
from weft.tenancy.passwords import PasswordHasher
from weft.tokenizer import BaseTokenizer

# the tables that `people_site` empties, those that refer to others first
_OF_PEOPLE = (
    "sign_in_attempts", "password_resets", "user_sessions", "oidc_identities", "oidc_domains",
    "oidc_providers", "invites", "memberships", "users", "audit_entries", "audit_heads", "api_keys",
    "admin_keys", "projects", "tenants",
)  # fmt: skip


class EchoEngine:
    """Answers with the prompt's own bytes, one token each `delay_s`; faults on demand."""

    def __init__(self) -> None:
        self.info = EngineInfo(
            base_name=BASE,
            base_digest=BASE_DIGEST,
            hf_config=HF_CONFIG,
            max_model_len=128,
            max_adapter_rank=16,
            dtype="float32",
            device="cpu",
            kernels="torch",
            memory_bytes={"weights": 1, "kv": 2, "adapters": 3},
        )
        self.delay_s = 0.0
        self.first_delay_s = 0.0
        self.not_ready_reason = ""
        self.admission_error: Exception | None = None
        self.fails_after: int | None = None
        self.max_waiting = 1000
        self.requests: list[EngineRequest] = []
        self.aborted: list[str] = []
        self.prefetched: list[str] = []
        self.pinned: set[str] = set()
        self.discarded: list[str] = []
        self.error_code: ErrorCode = "non_finite"
        self.grammar_error: Exception | None = None
        self.grammars: list[Grammar] = []
        self.adapter_placements: list[AdapterPlacement] = []
        self.unloaded: list[str] = []
        self._resident: set[str] = set()
        self.running_adapters: tuple[str, ...] = ()
        self.waiting_adapters: tuple[str, ...] = ()
        self.finished: dict[str, EngineOutput] = {}
        self.id_offset = 0  # of the tokens it says that it has sampled
        self._running: set[str] = set()
        self._draining = False
        self._num_tokens = 0
        self._num_prompt_tokens = 0

    @property
    def is_ready(self) -> bool:
        return not self.not_ready_reason

    async def prepare_grammar(self, grammar: Grammar) -> None:
        if self.grammar_error is not None:
            raise self.grammar_error
        self.grammars.append(grammar)

    async def generate(self, req: EngineRequest) -> AsyncIterator[EngineOutput]:
        if self.admission_error is not None:
            raise self.admission_error
        if self._draining:
            raise EngineDrainingError("draining")
        if len(self._running) >= self.max_waiting:
            raise EngineQueueFullError(self.max_waiting)
        self.requests.append(req)
        self._running.add(req.request_id)
        return self._outputs(req)

    async def _outputs(self, req: EngineRequest) -> AsyncIterator[EngineOutput]:
        """All choices side by side, the last one's output of a step last."""
        body = [t for t in req.prompt_token_ids if t < 256]
        num_sampled = 0
        await asyncio.sleep(self.first_delay_s)
        for i in range(req.sampling.max_tokens):
            await asyncio.sleep(self.delay_s)
            reason: FinishReason | None = None
            if req.request_id in self.aborted:
                reason = "abort"
            elif self.fails_after == i:
                reason = "error"
            elif i + 1 == req.sampling.max_tokens:
                reason = "length"
            elif i + 1 == len(body) and not req.sampling.ignore_eos:
                reason = "stop"
            token = None if reason in ("abort", "error") else body[i % len(body)]
            for index in range(req.sampling.n):
                num_sampled += token is not None
                self._num_tokens += token is not None
                yield self._output(req, index, token, reason, num_sampled)
            if reason is not None:
                return

    def _output(
        self, req: EngineRequest, index: int, token: int | None, reason: FinishReason | None,
        num_sampled: int,
    ) -> EngineOutput:  # fmt: skip
        logprobs: tuple[TokenLogprobs, ...] = ()
        if token is not None and req.sampling.logprobs is not None:
            best = tuple((token + k, -0.5 - k) for k in range(req.sampling.logprobs))
            logprobs = (TokenLogprobs(token + self.id_offset, -0.5, best),)
        output = EngineOutput(
            req.request_id,
            "" if token is None else chr(token),
            () if token is None else (token,),
            Usage(len(req.prompt_token_ids), num_sampled, 1),
            reason,
            "the logits are not finite" if reason == "error" else None,
            self.error_code if reason == "error" else None,
            index,
            reason is not None and index == req.sampling.n - 1,
            logprobs,
        )
        if output.is_last:
            self._running.discard(req.request_id)
            self._num_prompt_tokens += len(req.prompt_token_ids)
            self.finished[req.request_id] = output
        return output

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    async def stats(self, *, drain: bool = False) -> EngineStats:
        return self.snapshot(drain=drain)

    def snapshot(self, *, drain: bool = False) -> EngineStats:
        observed = {"time_to_first_token": (0.02,), "adapter_load_time": (0.3,)} if drain else {}
        return EngineStats(
            num_running=len(self._running),
            num_waiting=0,
            num_blocks_total=10,
            num_blocks_free=5,
            num_pages_total=8,
            num_pages_free=6,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generation_tokens=self._num_tokens,
            num_preemptions=0,
            running_adapters=self.running_adapters,
            waiting_adapters=self.waiting_adapters,
            adapter_states={"sha256:x": "device"},
            histograms=observed,
        )

    async def placements(self, adapter_digest: str | None = None) -> list[AdapterPlacement]:
        found = self.adapter_placements
        return found if adapter_digest is None else self._placement(adapter_digest)

    def _placement(self, digest: str) -> list[AdapterPlacement]:
        """A prefetched adapter is on the device, unless the test says otherwise."""
        told = [p for p in self.adapter_placements if p.adapter_digest == digest]
        here = AdapterPlacement(digest, "device", "gpu")
        absent = AdapterPlacement(digest, "absent", "remote")
        return told or [here if digest in self._resident else absent]

    async def unload_adapter(self, adapter_digest: str) -> None:
        self._resident.discard(adapter_digest)
        self.unloaded.append(adapter_digest)

    def prefetch_adapter(self, adapter_digest: str) -> None:
        self.prefetched.append(adapter_digest)
        self._resident.add(adapter_digest)

    async def discard_adapter(self, adapter_digest: str) -> None:
        await self.unload_adapter(adapter_digest)
        self.discarded.append(adapter_digest)

    async def pin_adapters(self, adapter_digests: Collection[str]) -> None:
        self.pinned = set(adapter_digests)

    async def drain(self, deadline_s: float) -> None:
        self._draining = True
        try:
            async with asyncio.timeout(deadline_s):
                while self._running:
                    await asyncio.sleep(0.005)
        except TimeoutError:
            for request_id in list(self._running):
                self.abort(request_id)


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
        client = openai.OpenAI(api_key=key, base_url=f"{self.url}/v1", max_retries=0)
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

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.http.close()


@pytest.fixture
def tokenizer(tmp_path: Path) -> BaseTokenizer:
    folder = tmp_path / "base"
    folder.mkdir()
    write_tokenizer(folder)
    return BaseTokenizer.from_dir(folder)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database at this release's schema, made by the real migrations once."""
    file = tmp_path_factory.mktemp("schema") / "weft.db"
    prepare(sqlite_url(file))
    return file


@pytest.fixture
def settings(tmp_path: Path, migrated: Path) -> ServerSettings:
    (tmp_path / "data").mkdir()
    shutil.copy(migrated, tmp_path / "data" / "weft.db")
    return ServerSettings(
        base_dir=tmp_path / "base",
        data_dir=tmp_path / "data",
        port=0,
        keepalive_s=0.2,
        queue_timeout_s=30.0,
        request_timeout_s=60.0,
        max_upload_bytes=200_000,
        max_body_bytes=100_000,
        smoke_check=False,
    )


@pytest.fixture
def site(tokenizer: BaseTokenizer, settings: ServerSettings) -> Iterator[Site]:
    engine = EchoEngine()
    app = create_app(settings, engine, tokenizer)
    with background_server(app, settings) as url:
        operator_key = (settings.data_dir / "operator_key").read_text().strip()
        http = httpx2.Client(base_url=url, timeout=20.0)
        running = Site(url, app, engine, settings, operator_key, http)
        yield running
        running.close()


@pytest.fixture(scope="session")
def lasting_site(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Site]:
    """A server for many tests: starting one takes longer than most of them. Passwords are hashed
    at the least cost; what hashes cost is tested elsewhere."""
    root = tmp_path_factory.mktemp("lasting")
    for folder in ("base", "data"):
        (root / folder).mkdir()
    write_tokenizer(root / "base")
    shutil.copy(migrated, root / "data" / "weft.db")
    settings = ServerSettings(base_dir=root / "base", data_dir=root / "data", port=0)
    engine = EchoEngine()
    hasher = PasswordHasher(Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weft.tenancy.build.PasswordHasher", lambda: hasher)
        app = create_app(settings, engine, BaseTokenizer.from_dir(root / "base"))
    with background_server(app, settings) as url:
        operator_key = (settings.data_dir / "operator_key").read_text().strip()
        http = httpx2.Client(base_url=url, timeout=20.0)
        running = Site(url, app, engine, settings, operator_key, http)
        yield running
        running.close()


@pytest.fixture
def people_site(lasting_site: Site) -> Iterator[Site]:
    """The lasting server without a tenant, key or person, as it is left behind again."""
    yield lasting_site
    file = lasting_site.settings.database_file
    with closing(sqlite3.connect(file, timeout=20.0)) as database, database:
        for table in _OF_PEOPLE:
            database.execute(f"DELETE FROM {table}")


@pytest.fixture
def acme(site: Site) -> str:
    """A tenant's key."""
    return site.tenant("acme")


@pytest.fixture
def lora() -> Callable[..., dict[str, bytes]]:
    """Files of a PEFT adapter on the tiny base's q_proj."""
    return create_lora


@pytest.fixture
def dead_engine_error() -> EngineDeadError:
    return EngineDeadError("RuntimeError: boom")
