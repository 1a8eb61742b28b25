"""Content digests: the identity of an adapter and of a base, everywhere in Weft.

The adapter's digest is over a versioned canonical form, so that formatting of the config and the
order of tensors in the file do not matter, while anything that changes an answer does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from weft_adapters.config import AdapterConfig
from weft_adapters.format import AdapterPlan
from weft_adapters.header import Header
from weft_adapters.tensors import TensorFile

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_CHUNK = 1 << 20


def is_digest(text: str) -> bool:
    return _DIGEST.match(text) is not None


def _canonical_json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def adapter_digest(
    config: AdapterConfig, plan: AdapterPlan, header: Header, file: TensorFile, base_digest: str
) -> str:
    """sha256 over: domain tag, base digest, canonical config, each tensor by name.

    The layout of fused expert factors is part of it, since it decides what their bytes mean.
    """
    assert is_digest(base_digest), "the base's digest names the base"
    layouts = {f.a_name: f"{f.parameter}/{f.swapped}" for f in plan.fused}
    head: dict[str, object] = {
        "base": base_digest, "config": config.canonical(), "layouts": layouts,
    }  # fmt: skip
    if plan.vocabulary is not None:
        saved, ties = list(config.modules_to_save), config.ensure_weight_tying
        head["vocabulary"] = {"modules_to_save": saved, "ensure_weight_tying": ties}
    if config.own_tokens is not None:
        head["tokenizer"] = config.own_tokens.to_dict()
    sha = hashlib.sha256(b"weft-adapter-v1\n" + _canonical_json(head) + b"\n")
    for name in sorted(header.tensors):
        info = header.tensors[name]
        entry = {"name": name, "dtype": info.dtype, "shape": list(info.shape)}
        sha.update(_canonical_json(entry) + b"\n")
        for chunk in file.chunks(name):
            sha.update(chunk)
    return f"sha256:{sha.hexdigest()}"


def base_digest(directory: Path) -> str:
    """sha256 over `config.json` in canonical form and every safetensors file, by name."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    sha = hashlib.sha256(b"weft-base-v1\n" + _canonical_json(config) + b"\n")
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{directory} holds no safetensors file")
    for path in files:
        sha.update(_canonical_json({"name": path.name, "bytes": path.stat().st_size}) + b"\n")
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                sha.update(chunk)
    return f"sha256:{sha.hexdigest()}"
