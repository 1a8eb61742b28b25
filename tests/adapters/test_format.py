"""Adapters that PEFT itself wrote: the weights that we serve are the weights that PEFT merges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.adapters.exports import (
    ATTENTION,
    MLP,
    PREFIX,
    Factors,
    WriteAdapter,
    assert_same,
    deltas_of,
    dense_model,
    export,
    load_adapter,
    peft_deltas,
)

from weft_adapters import expressions
from weft_adapters.config import parse_config
from weft_adapters.format import resolve
from weft_adapters.header import read_header_path
from weft_adapters.sites import BaseSpec, Site


@pytest.mark.parametrize(
    "keys",
    [
        {"target_modules": ATTENTION},
        {"target_modules": MLP, "lora_alpha": 3},
        {"target_modules": "all-linear", "r": 5, "use_rslora": True},
        {
            "target_modules": r".*layers\.1\..*(q|up)_proj",
            "rank_pattern": {"q_proj": 3},
            "alpha_pattern": {"1.mlp.up_proj": 7},
        },
        {
            "target_modules": ATTENTION + MLP,
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "q_proj": 3, r"layers\.1\.mlp\..*": 9},
            "alpha_pattern": {".*_proj": 5},
            "use_rslora": True,
        },
    ],
)
def test_dense_adapters(dense: BaseSpec, tmp_path: Path, keys: dict[str, Any]) -> None:
    model, config, path = export(dense_model(), tmp_path, **keys)
    assert_same(deltas_of(load_adapter(config, path, dense)), peft_deltas(model))


def test_patterns_that_take_too_many_steps_are_refused(
    dense: BaseSpec,
    write_adapter: WriteAdapter,
    factors: Factors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, path = write_adapter(factors("0.self_attn.q_proj", 32, 64), rank_pattern={".*q.*": 4})
    assert not resolve(parse_config(config), read_header_path(path), dense).faults
    monkeypatch.setattr(expressions, "MAX_WORK", 100)
    (fault,) = resolve(parse_config(config), read_header_path(path), dense).faults
    assert (fault.code, fault.tensor) == ("invalid_config", "rank_pattern")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_formats_are_widened_exactly(
    dense: BaseSpec, tmp_path: Path, write_adapter: WriteAdapter, dtype: str
) -> None:
    from safetensors.torch import save_file

    name = f"{PREFIX}.0.self_attn.q_proj.lora"
    tensors = {
        f"{name}_A.weight": torch.randn(4, 32).to(getattr(torch, dtype)),
        f"{name}_B.weight": torch.randn(64, 4).to(getattr(torch, dtype)),
    }
    path = tmp_path / "half.safetensors"
    save_file(tensors, path)
    config, _ = write_adapter({})
    weights = load_adapter(config, path, dense)[Site(0, "q_proj")]
    np.testing.assert_array_equal(weights.a, tensors[f"{name}_A.weight"].float().numpy())
    np.testing.assert_array_equal(weights.b, tensors[f"{name}_B.weight"].float().numpy().T)
    assert weights.a.dtype == weights.b.dtype == np.float32


def test_a_wrong_rank(
    dense: BaseSpec,
    write_adapter: WriteAdapter,
    factors: Factors,
    codes_of: Callable[..., set[str]],
) -> None:
    tensors = factors("0.self_attn.q_proj", 32, 64, rank=5)
    assert codes_of(*write_adapter(tensors), dense) == {"wrong_rank"}


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        f"{PREFIX}.0.self_attn.q_proj.lora_A.default.weight",
        f"{PREFIX}.0.self_attn.q_proj.lora_A.bias",
        f"{PREFIX}.0.self_attn.q_proj.weight",
        "base_model.model.lm_head.bias",
        "base_model.model.model.embed_tokens.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        f"{PREFIX}.0.self_attn.q_proj.lora_A.weight\n",
    ],
)
def test_every_tensor_must_be_used(
    dense: BaseSpec,
    write_adapter: WriteAdapter,
    factors: Factors,
    codes_of: Callable[..., set[str]],
    name: str,
) -> None:
    tensors = factors("0.self_attn.k_proj", 32, 32) | {name: np.ones((4, 32), np.float32)}
    (code,) = codes_of(*write_adapter(tensors), dense)
    assert code in ("unmapped_tensor", "missing_factor")


def test_a_factor_without_its_pair(
    dense: BaseSpec,
    write_adapter: WriteAdapter,
    factors: Factors,
    codes_of: Callable[..., set[str]],
) -> None:
    tensors = factors("0.self_attn.q_proj", 32, 64)
    del tensors[f"{PREFIX}.0.self_attn.q_proj.lora_B.weight"]
    assert codes_of(*write_adapter(tensors), dense) == {"missing_factor"}


def test_an_expert_adapted_twice(
    moe: BaseSpec,
    write_adapter: WriteAdapter,
    factors: Factors,
    codes_of: Callable[..., set[str]],
) -> None:
    tensors = factors("1.mlp.experts.0.down_proj", 24, 32) | {
        f"{PREFIX}.1.mlp.experts.lora_A.weight": np.ones((16, 24), np.float32),
        f"{PREFIX}.1.mlp.experts.lora_B.weight": np.ones((32, 16), np.float32),
    }
    assert codes_of(*write_adapter(tensors), moe) == {"duplicate_site"}


def test_no_tensors_at_all(
    dense: BaseSpec, write_adapter: WriteAdapter, codes_of: Callable[..., set[str]]
) -> None:
    assert codes_of(*write_adapter({}), dense) == {"no_tensors"}


def test_plans_are_the_same_for_any_order_of_keys(
    dense: BaseSpec, write_adapter: WriteAdapter, factors: Factors
) -> None:
    config, path = write_adapter(factors("0.self_attn.q_proj", 32, 64))
    reordered = json.dumps(dict(reversed(json.loads(config).items()))).encode()
    header = read_header_path(path)
    assert resolve(parse_config(config), header, dense) == resolve(
        parse_config(reordered), header, dense
    )
