"""Digests: the same for the same adapter however it is written, another for any other."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from weft_adapters.digest import base_digest, is_digest
from weft_adapters.sites import BaseSpec
from weft_adapters.validation import validate

WriteAdapter = Callable[..., tuple[bytes, Path]]
Factors = Callable[..., dict[str, NDArray[Any]]]


def digest(config: bytes, path: Path, base: BaseSpec) -> str:
    report = validate(config, path, base, max_rank=64)
    assert report.digest is not None, report.faults
    assert is_digest(report.digest)
    return report.digest


def reordered(path: Path) -> Path:
    """The same tensors, the last one first, with other metadata."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    blobs: list[bytes] = []
    new: dict[str, object] = {"__metadata__": {"made": "elsewhere"}}
    position = 0
    for name, info in reversed(header.items()):
        start, stop = info["data_offsets"]
        blobs.append(data[8 + length + start : 8 + length + stop])
        new[name] = {**info, "data_offsets": [position, position + stop - start]}
        position += stop - start
    text = json.dumps(new, indent=1).encode()
    out = path.with_suffix(".reordered")
    out.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    return out


def test_formatting_and_order_do_not_matter(
    dense: BaseSpec, write_adapter: WriteAdapter, factors: Factors
) -> None:
    tensors = factors("0.self_attn.q_proj", 32, 64) | factors("1.mlp.up_proj", 32, 48)
    config, path = write_adapter(tensors, rank_pattern={"q_proj": 4})
    first = digest(config, path, dense)
    loaded = json.loads(config)
    pretty = json.dumps(dict(reversed(loaded.items())), indent=4).encode()
    assert digest(pretty, path, dense) == first
    assert digest(config, reordered(path), dense) == first
    harmless = {**loaded, "lora_alpha": 8.0, "lora_dropout": 0.1, "base_model_name_or_path": "x"}
    assert digest(json.dumps(harmless).encode(), path, dense) == first


def test_whatever_changes_an_answer_changes_the_digest(
    dense: BaseSpec, write_adapter: WriteAdapter, factors: Factors
) -> None:
    tensors = factors("0.self_attn.q_proj", 32, 64)
    config, path = write_adapter(tensors)
    loaded = json.loads(config)
    name = next(iter(tensors))
    flipped = {key: value.copy() for key, value in tensors.items()}
    flipped[name][0, 0] = np.nextafter(flipped[name][0, 0], np.float32(9))
    halves = {key: value.astype(np.float16) for key, value in tensors.items()}
    moved = factors("1.self_attn.q_proj", 32, 64)
    other_base = dataclasses.replace(dense, digest="sha256:" + "f" * 64)

    def with_keys(**keys: object) -> bytes:
        return json.dumps({**loaded, **keys}).encode()

    digests = [
        digest(config, path, dense),
        digest(config, path, other_base),
        digest(with_keys(lora_alpha=9), path, dense),
        digest(with_keys(use_rslora=True), path, dense),
        digest(with_keys(alpha_pattern={"q_proj": 9, ".*": 3}), path, dense),
        digest(with_keys(alpha_pattern={".*": 3, "q_proj": 9}), path, dense),
        digest(config, write_adapter(flipped)[1], dense),
        digest(config, write_adapter(halves)[1], dense),
        digest(config, write_adapter(moved)[1], dense),
    ]
    assert len(set(digests)) == len(digests)


def test_the_layout_of_fused_experts_changes_the_digest(write_adapter: WriteAdapter) -> None:
    config = {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 16,
        "moe_intermediate_size": 16,
        "num_experts": 2,
    }
    base = BaseSpec.from_config(config, "sha256:" + "3" * 64)
    prefix = "base_model.model.model.layers.0.mlp.experts"
    tensors = {
        f"{prefix}.lora_A.weight": np.ones((8, 32), np.float32),
        f"{prefix}.lora_B.weight": np.ones((32, 8), np.float32),
    }
    old, path = write_adapter(tensors, peft_version="0.18.1")
    new, _ = write_adapter(tensors, peft_version="0.21.0")
    assert digest(old, path, base) != digest(new, path, base)


def test_a_bases_digest_is_over_its_config_and_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": 1, "b": 2}')
    with pytest.raises(ValueError, match="safetensors"):
        base_digest(tmp_path)
    (tmp_path / "model-1.safetensors").write_bytes(b"one")
    (tmp_path / "model-2.safetensors").write_bytes(b"two")
    first = base_digest(tmp_path)
    (tmp_path / "config.json").write_text('{ "b":2,\n"a":1 }')
    (tmp_path / "README.md").write_text("no weights")
    assert base_digest(tmp_path) == first
    (tmp_path / "model-1.safetensors").write_bytes(b"onet")
    (tmp_path / "model-2.safetensors").write_bytes(b"wo")
    assert base_digest(tmp_path) != first


@pytest.mark.parametrize(
    "text",
    ["", "sha256:", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "md5:" + "a" * 64]
    + ["sha256:" + "a" * 64 + "\n", "x/sha256:" + "a" * 64, "sha256:" + "../" * 21 + "a"],
)
def test_what_is_no_digest(text: str) -> None:
    assert not is_digest(text)
