"""Expert factors in tensors with a dimension for the experts, one side of which all may share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.adapters.exports import (
    MLP,
    PREFIX,
    Factors,
    WriteAdapter,
    assert_same,
    deltas_of,
    load_adapter,
)

from weft_adapters.sites import BaseSpec, Site

Tensors = dict[str, NDArray[Any]]


def shared_outer(
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"), block: str = "mlp"
) -> tuple[Tensors, dict[Site, NDArray[Any]]]:
    """Of layer 1: one A of all experts for gate and up, one B for down; and what they make."""
    random = np.random.default_rng(0)
    tensors: Tensors = {}
    expected: dict[Site, NDArray[Any]] = {}
    for name, projection in zip(names, MLP, strict=True):
        num_in, num_out = (24, 32) if projection == "down_proj" else (32, 24)
        num_a, num_b = (4, 1) if projection == "down_proj" else (1, 4)
        a = random.standard_normal((num_a, 4, num_in)).astype(np.float32)
        b = random.standard_normal((num_b, num_out, 4)).astype(np.float32)
        module = f"{PREFIX}.1.{block}.experts.{name}"
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        for expert in range(4):
            expected[Site(1, projection, expert)] = 2.0 * (b[expert % num_b] @ a[expert % num_a])
    return tensors, expected


def split_experts(tensors: Tensors) -> Tensors:
    """What is not shared as a module per expert."""
    split = {}
    for name, tensor in tensors.items():
        if len(tensor) == 1:
            split[name] = tensor
            continue
        for expert, own in enumerate(tensor):
            split[name.replace("experts.", f"experts.{expert}.")] = own
    return split


def test_expert_factors_with_a_shared_outer_side(
    moe: BaseSpec, write_adapter: WriteAdapter
) -> None:
    tensors, expected = shared_outer()
    weights = load_adapter(*write_adapter(tensors), moe)
    assert_same(deltas_of(weights), expected)
    assert len({id(weights[Site(1, "down_proj", expert)].b) for expert in range(4)}) == 1
    renamed, _ = shared_outer(("w1", "w3", "w2"))
    assert_same(deltas_of(load_adapter(*write_adapter(renamed), moe)), expected)
    assert_same(deltas_of(load_adapter(*write_adapter(split_experts(tensors)), moe)), expected)


def test_expert_factors_of_gate_and_up_together(moe: BaseSpec, write_adapter: WriteAdapter) -> None:
    tensors, expected = shared_outer()
    prefix = f"{PREFIX}.1.mlp.experts"
    gate, up = (f"{prefix}.{name}.lora" for name in MLP[:2])
    b = np.concatenate([tensors[f"{gate}_B.weight"], tensors[f"{up}_B.weight"]], axis=1)
    together = {
        f"{prefix}.gate_up_proj.lora_A.weight": tensors[f"{gate}_A.weight"],
        f"{prefix}.gate_up_proj.lora_B.weight": b,
    }
    a = tensors[f"{gate}_A.weight"][0]
    found = deltas_of(load_adapter(*write_adapter(together), moe))
    assert set(found) == {site for site in expected if site.projection != "down_proj"}
    for expert in range(4):
        for projection, rows in (("gate_proj", b[expert, :24]), ("up_proj", b[expert, 24:])):
            np.testing.assert_allclose(found[Site(1, projection, expert)], 2 * rows @ a, rtol=1e-5)


def test_expert_factors_stacked_for_each_expert(moe: BaseSpec, write_adapter: WriteAdapter) -> None:
    tensors = {
        name: np.repeat(tensor, 4, axis=0) if len(tensor) == 1 else tensor
        for name, tensor in shared_outer()[0].items()
    }
    assert_same(deltas_of(load_adapter(*write_adapter(tensors), moe)), shared_outer()[1])


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): t for name, t in tensors.items()}


def reshaped(end: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[..., Tensors]:
    return lambda tensors: {
        name: change(t) if name.endswith(end) else t for name, t in tensors.items()
    }


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (reshaped("lora_A.weight", lambda a: a[:, :3]), "wrong_shape"),
        (reshaped("lora_B.weight", lambda b: b[:, 1:]), "wrong_shape"),
        (reshaped("lora_A.weight", lambda a: a[:3]), "wrong_shape"),
        (reshaped("lora_A.weight", lambda a: np.repeat(a, 2, axis=0)), "wrong_shape"),
        (reshaped("lora_A.weight", lambda a: a.reshape(-1, a.shape[-1])), "wrong_shape"),
        (renamed("layers.1.", "layers.0."), "unmapped_tensor"),
        (renamed("mlp.", "block_sparse_moe."), "unmapped_tensor"),
        (renamed("lora_B", "lora_C"), "unmapped_tensor"),
        (renamed("experts.down_proj.lora_B", "experts.0.down_proj.lora_B"), "missing_factor"),
    ],
)
def test_expert_factors_that_do_not_fit(
    moe: BaseSpec,
    write_adapter: WriteAdapter,
    codes_of: Callable[..., set[str]],
    change: Callable[[Tensors], Tensors],
    code: str,
) -> None:
    tensors, _ = shared_outer()
    assert code in codes_of(*write_adapter(change(tensors)), moe)


@pytest.mark.parametrize("expert", [0, 3])
def test_a_shared_side_without_an_experts_other_side(
    moe: BaseSpec, write_adapter: WriteAdapter, codes_of: Callable[..., set[str]], expert: int
) -> None:
    tensors = split_experts(shared_outer()[0])
    del tensors[f"{PREFIX}.1.mlp.experts.{expert}.up_proj.lora_B.weight"]
    assert codes_of(*write_adapter(tensors), moe) == {"missing_factor"}


def test_an_expert_adapted_with_the_others_and_by_itself(
    moe: BaseSpec,
    write_adapter: WriteAdapter,
    factors: Factors,
    codes_of: Callable[..., set[str]],
) -> None:
    tensors = shared_outer()[0] | factors("1.mlp.experts.2.up_proj", 32, 24)
    assert codes_of(*write_adapter(tensors), moe) == {"duplicate_site"}
