"""Which module is which site of a base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.adapters.exports import (
    DOWN,
    PREFIX,
    Factors,
    WriteAdapter,
    assert_same,
    deltas_of,
    export,
    load_adapter,
    mixtral,
    moe_model,
    peft_deltas,
    qwen2_moe,
)

from weft_adapters.sites import BaseSpec, Site


def test_modules_per_expert(moe: BaseSpec, write_adapter: WriteAdapter, factors: Factors) -> None:
    tensors = factors("1.mlp.experts.2.gate_proj", 32, 24) | factors(
        "1.mlp.experts.0.down_proj", 24, 32, seed=1, rank=6
    )
    config, path = write_adapter(tensors, rank_pattern={"experts.0.down_proj": 6})
    expected = {}
    for site, rank in ((Site(1, "gate_proj", 2), 4), (Site(1, "down_proj", 0), 6)):
        name = f"{PREFIX}.1.mlp.experts.{site.expert}.{site.projection}"
        a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        expected[site] = 8 / rank * (b @ a)
    assert_same(deltas_of(load_adapter(config, path, moe)), expected)


def test_modules_per_expert_of_mixtral(write_adapter: WriteAdapter, factors: Factors) -> None:
    """As PEFT wrote them on transformers 4: w1 is gate, w3 up, w2 down."""
    expected: dict[Site, NDArray[Any]] = {}
    tensors: dict[str, NDArray[Any]] = {}
    for seed, (name, projection) in enumerate(
        [("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")]
    ):
        num_in, num_out = (48, 32) if name == "w2" else (32, 48)
        module = f"1.block_sparse_moe.experts.2.{name}"
        tensors |= factors(module, num_in, num_out, seed=seed, rank=2 if name == "w3" else 4)
        a, b = (tensors[f"{PREFIX}.{module}.lora_{role}.weight"] for role in "AB")
        expected[Site(1, projection, 2)] = 8 / len(a) * (b @ a)
    config, path = write_adapter(tensors, rank_pattern={"w3": 2})
    assert_same(deltas_of(load_adapter(config, path, mixtral())), expected)


def test_modules_of_a_shared_expert(write_adapter: WriteAdapter, factors: Factors) -> None:
    shared = "1.mlp.shared_expert"
    tensors = (
        factors(f"{shared}.gate_proj", 32, 40)
        | factors(f"{shared}.up_proj", 32, 40)
        | factors(f"{shared}.down_proj", 40, 32)
        | factors(f"{shared}_gate", 32, 1)
    )
    config, path = write_adapter(tensors, alpha_pattern={"shared_expert.up_proj": 4})
    weights = load_adapter(config, path, qwen2_moe())
    assert {(site.projection, w.scale) for site, w in weights.items()} == {
        ("shared_gate_proj", 2.0),
        ("shared_up_proj", 1.0),
        ("shared_down_proj", 2.0),
        ("shared_expert_gate", 2.0),
    }
    down = weights[Site(1, "shared_down_proj")]
    np.testing.assert_array_equal(down.a, tensors[f"{PREFIX}.{shared}.down_proj.lora_A.weight"])


@pytest.mark.parametrize(
    ("base", "module", "num_in", "num_out"),
    [
        (mixtral(), "0.mlp.experts.0.gate_proj", 32, 48),
        (mixtral(), "0.block_sparse_moe.experts.0.gate_proj", 32, 48),
        (mixtral(), "0.block_sparse_moe.experts.4.w1", 32, 48),
        (mixtral(), "0.block_sparse_moe.w1", 32, 48),
        (mixtral(), "0.mlp.up_proj", 32, 48),
        (qwen2_moe(), "1.block_sparse_moe.experts.0.w1", 32, 24),
        (qwen2_moe(), "1.mlp.experts.0.w1", 32, 24),
        (qwen2_moe(), "0.mlp.shared_expert.up_proj", 32, 40),
        (qwen2_moe(), "1.mlp.shared_expert.q_proj", 32, 64),
        (qwen2_moe(), "1.mlp.shared_expert.expert_gate", 32, 1),
        (qwen2_moe(), "1.mlp.shared_up_proj", 32, 40),
        (qwen2_moe(), "1.self_attn.shared_expert.up_proj", 32, 40),
        (qwen2_moe(), "1.self_attn.experts.0.up_proj", 32, 24),
    ],
)
def test_a_module_that_the_family_does_not_have(
    base: BaseSpec,
    write_adapter: WriteAdapter,
    factors: Factors,
    codes_of: Callable[..., set[str]],
    module: str,
    num_in: int,
    num_out: int,
) -> None:
    assert codes_of(*write_adapter(factors(module, num_in, num_out)), base) == {"unmapped_tensor"}


@pytest.mark.parametrize(
    ("base", "module", "key"),
    [
        (mixtral(), "1.block_sparse_moe.gate", "gate"),
        (mixtral(), "1.mlp.gate", "gate"),
        (qwen2_moe(), "1.mlp.gate", "mlp.gate"),
    ],
)
def test_the_router_is_a_module(
    base: BaseSpec, write_adapter: WriteAdapter, factors: Factors, module: str, key: str
) -> None:
    """As transformers 4 had it."""
    tensors = factors(module, 32, 4, rank=2)
    config, path = write_adapter(tensors, rank_pattern={key: 2, "gate.weight": 3})
    a, b = tensors.values()
    assert_same(deltas_of(load_adapter(config, path, base)), {Site(1, "router"): 8 / 2 * (b @ a)})


def test_the_router_is_a_parameter(moe: BaseSpec, tmp_path: Path) -> None:
    keys = {
        "target_modules": [],
        "target_parameters": [DOWN, "gate.weight"],
        "rank_pattern": {"mlp.gate.weight": 3},
        "alpha_pattern": {"gate.weight": 7, "gate": 99},
    }
    model, config, path = export(moe_model(), tmp_path, **keys)
    assert_same(deltas_of(load_adapter(config, path, moe)), peft_deltas(model))


def test_a_router_adapted_under_both_of_its_names(
    write_adapter: WriteAdapter, factors: Factors, codes_of: Callable[..., set[str]]
) -> None:
    tensors = factors("1.block_sparse_moe.gate", 32, 4) | factors("1.mlp.gate", 32, 4)
    assert codes_of(*write_adapter(tensors), mixtral()) == {"duplicate_site"}


@pytest.mark.parametrize(
    ("module", "num_in", "num_out", "code"),
    [
        ("2.self_attn.q_proj", 32, 64, "unmapped_tensor"),
        ("00.self_attn.q_proj", 32, 64, "unmapped_tensor"),
        ("٠.self_attn.q_proj", 32, 64, "unmapped_tensor"),
        ("0.self_attn.up_proj", 32, 48, "unmapped_tensor"),
        ("0.mlp.q_proj", 32, 64, "unmapped_tensor"),
        ("0.mlp.gate", 32, 4, "unmapped_tensor"),
        ("0.mlp.experts.0.up_proj", 32, 24, "unmapped_tensor"),
        ("1.mlp.up_proj", 32, 48, "unmapped_tensor"),
        ("1.mlp.experts.4.up_proj", 32, 24, "unmapped_tensor"),
        ("0.self_attn.q_proj", 64, 64, "wrong_shape"),
        ("0.self_attn.q_proj", 32, 65, "wrong_shape"),
    ],
)
def test_a_tensor_of_no_site(
    moe: BaseSpec,
    write_adapter: WriteAdapter,
    factors: Factors,
    codes_of: Callable[..., set[str]],
    module: str,
    num_in: int,
    num_out: int,
    code: str,
) -> None:
    assert code in codes_of(*write_adapter(factors(module, num_in, num_out)), moe)
