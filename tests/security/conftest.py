"""One server for all attacks of a module: the app over loopback HTTP; its engine echoes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from pwdlib.hashers.argon2 import Argon2Hasher
from safetensors.numpy import save
from tests.gateway.conftest import migrated
from tests.gateway.echo import EchoEngine
from tests.gateway.site import Site
from tests.tiny import BASE_DIGEST, HF_CONFIG, create_lora

from weft.app import create_app
from weft.demo.tokens import write_tokenizer
from weft.server.http import background_server
from weft.settings import ServerSettings
from weft.tenancy.passwords import PasswordHasher
from weft.tokenizer import BaseTokenizer
from weft_adapters.sites import BaseSpec

__all__ = ["migrated"]

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
Lora = Callable[..., dict[str, bytes]]


@pytest.fixture(scope="module", autouse=True)
def _cheap_hashes() -> Iterator[None]:
    """Argon2id at its least cost: what it costs is tested elsewhere."""
    hasher = PasswordHasher(Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weft.tenancy.build.PasswordHasher", lambda: hasher)
        yield


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, migrated: Path, _cheap_hashes: None
) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("attacked")
    (root / "base").mkdir()
    (root / "data").mkdir()
    write_tokenizer(root / "base")
    shutil.copy(migrated, root / "data" / "weft.db")
    settings = ServerSettings(
        base_dir=root / "base",
        data_dir=root / "data",
        port=0,
        max_upload_bytes=2**20,
        max_body_bytes=100_000,
        head_timeout_s=1.0,
        body_timeout_s=1.0,
        max_versions_per_tenant=6,
        max_stored_bytes_per_tenant=2**20,
    )
    engine = EchoEngine()
    app = create_app(settings, engine, BaseTokenizer.from_dir(root / "base"))
    with background_server(app, settings) as url:
        operator_key = (settings.data_dir / "operator_key").read_text().strip()
        http = httpx2.Client(base_url=url, timeout=20.0)
        running = Site(url, app, engine, settings, operator_key, http)
        yield running
        running.close()


@pytest.fixture(scope="module")
def mallory(site: Site) -> str:
    """The attacker's own key, with an adapter named `bot` to attack through."""
    key = site.tenant("mallory")
    site.create_adapter(key, "bot")
    return key


@pytest.fixture(scope="session")
def lora() -> Lora:
    """(seed, rank, **config keys) -> files of a good adapter of the server's base."""
    return create_lora


@pytest.fixture(scope="session")
def factors() -> dict[str, Any]:
    """The two tensors of a good adapter, by name."""
    rng = np.random.default_rng(0)
    return {
        f"{MODULE}.lora_A.weight": rng.normal(size=(4, 16)).astype(np.float32),
        f"{MODULE}.lora_B.weight": rng.normal(size=(16, 4)).astype(np.float32),
    }


@pytest.fixture
def assert_refused(site: Site, mallory: str, lora: Lora) -> Callable[..., list[dict[str, Any]]]:
    """(config=None, tensors=None: other bytes of either file) -> the faults of the 422."""

    def check(config: bytes | None = None, tensors: Any = None) -> list[dict[str, Any]]:
        files = lora()
        if config is not None:
            files[CONFIG] = config
        if tensors is not None:
            files[TENSORS] = tensors if isinstance(tensors, bytes) else save(tensors)
        answer = site.upload(mallory, "bot", files)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (422, "adapter_invalid"), answer.text
        assert list(site.settings.uploads_dir.iterdir()) == [], "the upload left files behind"
        faults: list[dict[str, Any]] = error["details"]
        assert faults
        return faults

    return check


@pytest.fixture(scope="session")
def spec() -> BaseSpec:
    """The server's base."""

    return BaseSpec.from_config(HF_CONFIG, BASE_DIGEST)
