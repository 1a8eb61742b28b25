"""Tiny bases, and adapters written for them by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from weft_adapters.config import parse_config
from weft_adapters.format import resolve
from weft_adapters.header import read_header_path
from weft_adapters.merge import Parent, read_parent
from weft_adapters.sites import BaseSpec
from weft_adapters.source import load_verified
from weft_adapters.store import FolderStore, StoredAdapter
from weft_adapters.validation import validate

Tensors = Mapping[str, NDArray[Any]]
WriteAdapter = Callable[..., tuple[bytes, Path]]
PREFIX = "base_model.model.model.layers"


@pytest.fixture(scope="session")
def dense() -> BaseSpec:
    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 48,
        "vocab_size": 40,
    }
    return BaseSpec.from_config({"model_type": "qwen3", **sizes}, "sha256:" + "0" * 64)


@pytest.fixture(scope="session")
def moe() -> BaseSpec:
    """Layer 0 dense, layer 1 with four experts."""
    config = {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [0],
    }
    return BaseSpec.from_config(config, "sha256:" + "1" * 64)


def _factors(
    module: str, num_in: int, num_out: int, rank: int = 4, seed: int = 0
) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng([seed, num_in, num_out, rank])
    a = random.standard_normal((rank, num_in)).astype(np.float32)
    b = random.standard_normal((num_out, rank)).astype(np.float32)
    return {f"{PREFIX}.{module}.lora_A.weight": a, f"{PREFIX}.{module}.lora_B.weight": b}


@pytest.fixture(scope="session")
def factors() -> Callable[..., dict[str, NDArray[Any]]]:
    """(module below the layers, in, out, rank=4, seed=0) -> the two tensors by name."""
    return _factors


@pytest.fixture
def write_adapter(tmp_path: Path) -> WriteAdapter:
    """(tensors, **config keys) -> the config's bytes and the tensor file; r=4 and alpha=8."""
    count = iter(range(1000))

    def write(tensors: Tensors, **keys: object) -> tuple[bytes, Path]:
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "peft_version": "0.21.2", **keys}
        path = tmp_path / f"adapter-{next(count)}.safetensors"
        save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, path)
        return json.dumps(config).encode(), path

    return write


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def put_adapter(
    store: FolderStore, dense: BaseSpec, write_adapter: WriteAdapter
) -> Callable[..., str]:
    """(seed, rank=4, modules=...) -> the digest of an adapter of the dense base in the store."""

    def put(seed: int, rank: int = 4, modules: tuple[str, ...] = ("self_attn.q_proj",)) -> str:
        sizes = {"self_attn.q_proj": (32, 64), "mlp.down_proj": (48, 32), "mlp.up_proj": (32, 48)}
        tensors: dict[str, NDArray[Any]] = {}
        for module in modules:
            tensors |= _factors(f"0.{module}", *sizes[module], rank=rank, seed=seed)
        config, path = write_adapter(tensors, r=rank)
        report = validate(config, path, dense, max_rank=64)
        assert report.digest is not None, report.faults
        store.put(report.digest, config, path)
        return report.digest

    return put


@pytest.fixture
def load_stored(store: FolderStore, dense: BaseSpec) -> Callable[[str], Any]:
    return lambda digest: load_verified(store.open(digest), digest, dense)


@pytest.fixture
def parent(write_adapter: WriteAdapter, dense: BaseSpec) -> Callable[..., Parent]:
    """(name, tensors, **config keys) -> an adapter of the dense base, ready to be merged."""

    def read(name: str, tensors: Tensors, **keys: object) -> Parent:
        config, tensors_path = write_adapter(tensors, **keys)
        report = validate(config, tensors_path, dense, max_rank=64)
        assert report.digest is not None, report.faults
        config_path = tensors_path.with_suffix(".json")
        config_path.write_bytes(config)
        return read_parent(name, report.digest, StoredAdapter(config_path, tensors_path), dense)

    return read


@pytest.fixture(scope="session")
def codes_of() -> Callable[[bytes, Path, BaseSpec], set[str]]:
    """The codes of all faults that resolving an adapter finds."""

    def codes(config: bytes, path: Path, base: BaseSpec) -> set[str]:
        plan = resolve(parse_config(config), read_header_path(path), base)
        return {fault.code for fault in plan.faults}

    return codes
