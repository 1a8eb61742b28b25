"""What a merge is, and which adapters have one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from weft_adapters.merge import (
    MAX_PARENTS,
    MergeRecipe,
    MergeRefusedError,
    Parent,
    merged_config,
    plan_merge,
    read_parent,
    verify_parent,
)
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.store import StoredAdapter
from weft_adapters.validation import validate

Tensors = dict[str, NDArray[Any]]
WriteAdapter = Callable[..., tuple[bytes, Path]]
Factors = Callable[..., Tensors]
ReadParent = Callable[..., Parent]

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def test_the_derived_digest_is_the_recipe() -> None:
    recipe = MergeRecipe.create([A, B], [0.5, 1], "ties", 0.5)
    assert recipe.digest == MergeRecipe.create([A, B], [0.5, 1.0], "ties", 0.5, "total").digest
    others = [
        MergeRecipe.create([B, A], [0.5, 1], "ties", 0.5),
        MergeRecipe.create([A, B], [1, 0.5], "ties", 0.5),
        MergeRecipe.create([A, B], [0.5, 1], "ties", 0.25),
        MergeRecipe.create([A, B], [0.5, 1], "ties", 0.5, "frequency"),
        MergeRecipe.create([A, B], [0.5, 1], "dare_ties", 0.5),
        MergeRecipe.create([A, B], [0.5, 1], "linear"),
        MergeRecipe.create([A], [0.5]),
    ]
    assert len({recipe.digest, *(other.digest for other in others)}) == len(others) + 1


def test_what_a_strategy_does_not_use_makes_no_difference() -> None:
    plain = MergeRecipe.create([A, B], [1, 1])
    assert MergeRecipe.create([A, B], [1, 1], "linear", 0.3, "frequency") == plain
    dare = MergeRecipe.create([A, B], [1, 1], "dare_linear", 0.3)
    assert MergeRecipe.create([A, B], [1, 1], "dare_linear", 0.3, "frequency") == dare
    assert MergeRecipe.create([A], [2], "dare_ties", 0.3) == MergeRecipe.create([A], [2])


@pytest.mark.parametrize(
    ("parents", "weights", "rest", "said"),
    [
        ([], [], (), "1 to 16 adapters are merged, not 0"),
        ([A] * (MAX_PARENTS + 1), [1] * (MAX_PARENTS + 1), (), "not 17"),
        ([A, B], [1], (), "1 weights for 2 adapters"),
        ([A, B], [1, float("nan")], (), "not finite"),
        ([A, B], [1, 1], ("ties",), "needs a density"),
        ([A, B], [1, 1], ("dare_linear", 0.0), "needs a density"),
        ([A, B], [1, 1], ("dare_ties", 1.5), "needs a density"),
    ],
)
def test_values_that_make_no_merge_are_refused(
    parents: list[str], weights: list[float], rest: tuple[Any, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        MergeRecipe.create(parents, weights, *rest)


def test_each_site_of_each_merge_has_masks_of_its_own() -> None:
    recipe = MergeRecipe.create([A, B], [1, 1], "dare_linear", 0.5)
    recipes = (recipe, replace(recipe, density=0.6))
    seeds = {r.seed(Site(layer, "q_proj")) for r in recipes for layer in range(3)}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


# ---- which adapters can be merged ----


def test_different_ranks_at_a_site_are_refused_by_name(
    parent: ReadParent, factors: Factors
) -> None:
    small = parent("small", factors("0.self_attn.q_proj", 32, 64, rank=4))
    large = parent("large", factors("0.self_attn.q_proj", 32, 64, rank=8), r=8)
    with pytest.raises(MergeRefusedError) as caught:
        plan_merge([small, large])
    assert "'small' has rank 4 and 'large' rank 8" in str(caught.value)
    # at sites of their own they do not meet
    other = parent("other", factors("1.self_attn.q_proj", 32, 64, rank=8), r=8)
    assert [merge.rank for merge in plan_merge([small, other])] == [4, 8]


def test_damaged_bytes_are_not_merged(
    parent: ReadParent, factors: Factors, dense: BaseSpec
) -> None:
    good = parent("bot", factors("0.self_attn.q_proj", 32, 64))
    verify_parent(good, dense)
    data = bytearray(good.stored.tensors_path.read_bytes())
    data[-1] ^= 1
    good.stored.tensors_path.write_bytes(data)
    with pytest.raises(MergeRefusedError, match="'bot' is damaged in the store"):
        verify_parent(good, dense)


def test_factors_of_a_fused_parameter_have_no_merge(
    write_adapter: WriteAdapter, moe: BaseSpec, tmp_path: Path
) -> None:
    name = "base_model.model.model.layers.1.mlp.experts"
    tensors = {
        f"{name}.lora_A.weight": np.ones((4 * 4, 24), np.float32),
        f"{name}.lora_B.weight": np.ones((32, 4 * 4), np.float32),
    }
    config, path = write_adapter(tensors, target_parameters=["mlp.experts.down_proj"])
    report = validate(config, path, moe, max_rank=64)
    assert report.digest is not None, report.faults
    (tmp_path / "config.json").write_bytes(config)
    stored = StoredAdapter(tmp_path / "config.json", path)
    with pytest.raises(
        MergeRefusedError, match="'fused' cannot be merged: it holds .*mlp.experts.lora_"
    ):
        read_parent("fused", report.digest, stored, moe)


@pytest.mark.parametrize(
    ("tensor", "keys"),
    [("lora_magnitude_vector", {"use_dora": True}), ("base_layer.bias", {"bias": "lora_only"})],
)
def test_a_row_scale_or_a_bias_has_no_merge(
    parent: ReadParent, factors: Factors, tensor: str, keys: dict[str, object]
) -> None:
    name = f"base_model.model.model.layers.0.self_attn.q_proj.{tensor}"
    own = factors("0.self_attn.q_proj", 32, 64) | {name: np.ones(64, np.float32)}
    with pytest.raises(MergeRefusedError, match=f"'bot' cannot be merged: it holds '.*{tensor}'"):
        parent("bot", own, **keys)


def test_a_config_that_would_be_too_large_is_refused(
    parent: ReadParent, factors: Factors, dense: BaseSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges = plan_merge([parent("a", factors("0.self_attn.q_proj", 32, 64))])
    monkeypatch.setattr("weft_adapters.merge.MAX_CONFIG_BYTES", 50)
    with pytest.raises(MergeRefusedError, match="too many modules"):
        merged_config(merges, "tiny", dense)
