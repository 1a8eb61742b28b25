"""Adapters of the experts that transformers fuses into parameters, as PEFT writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.adapters.exports import (
    DOWN,
    GATE_UP,
    MLP,
    PREFIX,
    SIZES,
    WriteAdapter,
    assert_same,
    deltas_of,
    export,
    load_adapter,
    moe_model,
    peft_deltas,
)

from weft_adapters.sites import BaseSpec, Site


@pytest.mark.parametrize(
    "keys",
    [
        {"target_modules": ["q_proj"], "target_parameters": [GATE_UP, DOWN]},
        {"target_modules": ["q_proj"], "target_parameters": [DOWN, GATE_UP]},
        {"target_modules": [], "target_parameters": [DOWN]},
        {"target_modules": [], "target_parameters": [GATE_UP]},
        {
            "target_modules": ["o_proj"],
            "target_parameters": [GATE_UP, DOWN],
            "rank_pattern": {"experts.down_proj": 3},
            "alpha_pattern": {"gate_up_proj": 5},
        },
        # transformers 5 turns these into target_parameters, with twice the rank for gate_up
        {"target_modules": MLP, "r": 3},
    ],
)
def test_fused_experts(moe: BaseSpec, tmp_path: Path, keys: dict[str, Any]) -> None:
    model, config, path = export(moe_model(), tmp_path, **keys)
    weights = load_adapter(config, path, moe)
    assert any(site.expert is not None for site in weights)
    assert_same(deltas_of(weights), peft_deltas(model))


def test_the_layout_of_peft_0_18(moe: BaseSpec, write_adapter: WriteAdapter) -> None:
    """`in` and `out` swap their places: delta = einsum("o r e, e r i -> e i o", B, A)."""
    random = np.random.default_rng(0)
    sizes = {"base_layer.": (32, 48), "": (24, 32)}
    tensors, expected = {}, {}
    for place, (num_in, num_out) in sizes.items():
        a = random.standard_normal((4 * 4, num_out)).astype(np.float32)
        b = random.standard_normal((num_in, 4 * 4)).astype(np.float32)
        tensors[f"{PREFIX}.1.mlp.experts.{place}lora_A.weight"] = a
        tensors[f"{PREFIX}.1.mlp.experts.{place}lora_B.weight"] = b
        delta = 2.0 * np.einsum("ore,eri->eio", b.reshape(num_in, 4, 4), a.reshape(4, 4, num_out))
        for expert in range(4):
            if place:
                expected[Site(1, "gate_proj", expert)] = delta[expert, :24]
                expected[Site(1, "up_proj", expert)] = delta[expert, 24:]
            else:
                expected[Site(1, "down_proj", expert)] = delta[expert]
    for version in ("0.18.0", "0.17.1", None):
        config, path = write_adapter(tensors, peft_version=version)
        assert_same(deltas_of(load_adapter(config, path, moe)), expected)


def square_moe() -> BaseSpec:
    """hidden == 2 x expert width: the two layouts of gate_up cannot be told apart by shape."""
    config = {
        **SIZES,
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 16,
        "num_experts": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    return BaseSpec.from_config(config, "sha256:" + "2" * 64)


def test_a_layout_that_nothing_tells_apart_is_refused(
    write_adapter: WriteAdapter, codes_of: Callable[..., set[str]]
) -> None:
    tensors = {
        f"{PREFIX}.0.mlp.experts.lora_A.weight": np.ones((8, 32), np.float32),
        f"{PREFIX}.0.mlp.experts.lora_B.weight": np.ones((32, 8), np.float32),
    }
    assert codes_of(*write_adapter(tensors, peft_version=None), square_moe()) == {
        "ambiguous_layout"
    }
    assert "ambiguous_layout" in codes_of(
        *write_adapter(tensors, peft_version="0.18.2.dev0@unknown"), square_moe()
    )
    assert not codes_of(*write_adapter(tensors, peft_version="0.18.0"), square_moe())
    assert not codes_of(*write_adapter(tensors, peft_version="0.19.0"), square_moe())
