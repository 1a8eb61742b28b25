"""A real S3 API over HTTP on loopback, and a proxy before it that breaks things."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from benchmarks.chaos import Chaos, chaos_proxy, s3_server
from safetensors.numpy import save_file

from weft.storage.s3 import S3Location, S3Store
from weft_adapters.sites import BaseSpec
from weft_adapters.validation import validate

BUCKET = "adapters"


@pytest.fixture(scope="session", autouse=True)
def _credentials() -> Iterator[None]:
    own = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    before = {key: os.environ.get(key) for key in own}
    os.environ.update(own)
    yield
    for key, value in before.items():
        if value is None:
            del os.environ[key]
        else:
            os.environ[key] = value


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of the S3 server; WEFT_TEST_S3_ENDPOINT names another than moto's."""
    named = os.environ.get("WEFT_TEST_S3_ENDPOINT")
    with ExitStack() as stack:
        yield named or stack.enter_context(s3_server())


@pytest.fixture(scope="session")
def client(server: str) -> Any:
    return boto3.client("s3", endpoint_url=server, region_name="us-east-1")


@pytest.fixture
def location(client: Any, request: pytest.FixtureRequest) -> S3Location:
    """A place in the bucket for each test."""
    if BUCKET not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=BUCKET)
    return S3Location(BUCKET, f"{abs(hash(request.node.nodeid))}/")


@pytest.fixture
def store(server: str, location: S3Location) -> S3Store:
    """Straight to the server."""
    return S3Store(location, server)


@pytest.fixture
def create_far_store(server: str, location: S3Location) -> Iterator[Callable[[Chaos], S3Store]]:
    """(chaos) -> the same place through a proxy."""
    with ExitStack() as stack:
        yield lambda chaos: S3Store(location, stack.enter_context(chaos_proxy(server, chaos)))


@pytest.fixture(scope="session")
def base() -> BaseSpec:
    config = {
        "model_type": "qwen3", "num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48, "vocab_size": 64,
    }  # fmt: skip
    return BaseSpec.from_config(config, "sha256:" + "0" * 64)


@pytest.fixture
def put_adapter(store: S3Store, base: BaseSpec, tmp_path: Path) -> Callable[[int], str]:
    """(seed) -> the digest of an adapter in the store, of rank 8 on q_proj."""

    def put(seed: int) -> str:
        random = np.random.default_rng(seed)
        module = "base_model.model.model.layers.0.self_attn.q_proj"
        a = random.standard_normal((8, 32)).astype(np.float32)
        b = random.standard_normal((64, 8)).astype(np.float32)
        path = tmp_path / f"{seed}.safetensors"
        save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, path)
        config = b'{"peft_type": "LORA", "r": 8, "lora_alpha": 8, "peft_version": "0.21.2"}'
        report = validate(config, path, base, max_rank=64)
        assert report.digest is not None, report.faults
        store.put(report.digest, config, path)
        return report.digest

    return put
