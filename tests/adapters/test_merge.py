"""What a merge is, which adapters have one, and that the worker's is PEFT's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file
from torch import nn

from weft_adapters.merge import (
    MAX_PARENTS,
    MergeJob,
    MergeRecipe,
    MergeRefusedError,
    Parent,
    merged_config,
    plan_merge,
    read_parent,
    verify_parent,
)
from weft_adapters.merge_worker import run_job
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.store import CONFIG_NAME, TENSORS_NAME, StoredAdapter
from weft_adapters.validation import validate

Tensors = dict[str, NDArray[Any]]
WriteAdapter = Callable[..., tuple[bytes, Path]]
Factors = Callable[..., Tensors]
ReadParent = Callable[..., Parent]

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
# what `dense` of the conftest is made of
HF_CONFIG = {
    "model_type": "qwen3",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
}


@pytest.fixture
def parent(write_adapter: WriteAdapter, dense: BaseSpec, tmp_path: Path) -> ReadParent:
    """(name, tensors, **config keys) -> an adapter of the dense base, ready to be merged."""

    def read(name: str, tensors: Tensors, **keys: object) -> Parent:
        config, tensors_path = write_adapter(tensors, **keys)
        report = validate(config, tensors_path, dense, max_rank=64)
        assert report.digest is not None, report.faults
        config_path = tensors_path.with_suffix(".json")
        config_path.write_bytes(config)
        return read_parent(name, report.digest, StoredAdapter(config_path, tensors_path), dense)

    return read


def merge_files(recipe: MergeRecipe, parents: list[Parent], dense: BaseSpec, folder: Path) -> Path:
    folder.mkdir()
    paths = [(p.name, str(p.stored.config_path), str(p.stored.tensors_path)) for p in parents]
    run_job(MergeJob(recipe, tuple(paths), HF_CONFIG, "tiny", dense.digest, str(folder)))
    return folder


# ---- recipes ----


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


# ---- the merge itself ----


class Block(nn.Module):
    """The modules of one layer that the tests adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({"q_proj": nn.Linear(32, 64), "o_proj": nn.Linear(64, 32)})


class Tiny(nn.Module):
    """Named as a decoder is; PEFT needs no more."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"layers": nn.ModuleList([Block(), Block()])})


def merge_with_peft(
    recipe: MergeRecipe, configs: list[dict[str, Any]], states: list[Tensors]
) -> Any:
    """PEFT's own `add_weighted_adapter`, its masks drawn from the recipe's seeds."""
    names = [f"adapter{number}" for number in range(len(configs))]
    model: Any = get_peft_model(Tiny(), LoraConfig(**configs[0]), adapter_name=names[0])
    for name, keys in zip(names[1:], configs[1:], strict=True):
        model.add_adapter(name, LoraConfig(**keys))
    for name, state in zip(names, states, strict=True):
        for key, tensor in state.items():
            parameter = model.get_parameter(key.replace(".weight", f".{name}.weight"))
            parameter.data = torch.from_numpy(tensor)
    sites = {
        id(model.get_submodule(f"base_model.model.model.layers.{layer}.self_attn.{projection}")):
        Site(layer, projection)
        for layer in (0, 1)
        for projection in ("q_proj", "o_proj")
    }  # fmt: skip
    merge = model.base_model._generalized_task_arithmetic_weighted_adapter

    def merge_seeded(strategy: str, adapters: Any, weights: Any, target: Any, *rest: Any) -> Any:
        torch.manual_seed(recipe.seed(sites[id(target)]))
        return merge(strategy, adapters, weights, target, *rest)

    model.base_model._generalized_task_arithmetic_weighted_adapter = merge_seeded
    model.add_weighted_adapter(
        names, list(recipe.weights), "merged", recipe.strategy, density=recipe.density,
        majority_sign_method=recipe.majority_sign_method,
    )  # fmt: skip
    return model


RECIPES: dict[str, Any] = {
    "linear": ([0.5, 1.5, -0.7], "linear"),
    "ties": ([0.5, 1.5, 0.7], "ties", 0.4),
    "ties, frequency, a negative weight": ([0.5, -1.5, 0.7], "ties", 0.7, "frequency"),
    "dare_linear": ([1.0, 0.25, 0.5], "dare_linear", 0.5),
    "dare_ties": ([1.0, 0.25, 0.5], "dare_ties", 0.5),
    "dare_ties, frequency, all kept": ([1.0, 0.0, 2.0], "dare_ties", 1.0, "frequency"),
}


@pytest.mark.filterwarnings("ignore:The density 1.0 is greater")
@pytest.mark.parametrize("name", RECIPES)
def test_every_strategy_is_pefts(
    name: str, parent: ReadParent, factors: Factors, dense: BaseSpec, tmp_path: Path
) -> None:
    """Three adapters of different scales; one lacks a site, and another has one alone."""
    both = factors("0.self_attn.q_proj", 32, 64, seed=1) | factors("0.self_attn.o_proj", 64, 32)
    states = [
        both | factors("1.self_attn.o_proj", 64, 32, seed=4),
        both | factors("0.self_attn.q_proj", 32, 64, seed=2),
        factors("0.self_attn.q_proj", 32, 64, seed=3),
    ]
    configs: list[dict[str, Any]] = [
        {"r": 4, "lora_alpha": 8, "target_modules": ["0.self_attn.q_proj", "o_proj"]},
        {"r": 4, "lora_alpha": 2, "target_modules": ["0.self_attn.q_proj", "0.self_attn.o_proj"]},
        {"r": 4, "lora_alpha": 16, "target_modules": ["0.self_attn.q_proj"]},
    ]
    parents = [
        parent(f"bot{i}", state, **keys)
        for i, (state, keys) in enumerate(zip(states, configs, strict=True))
    ]
    recipe = MergeRecipe.create([p.digest for p in parents], *RECIPES[name])
    folder = merge_files(recipe, parents, dense, tmp_path / "merged")

    report = validate(
        (folder / CONFIG_NAME).read_bytes(), folder / TENSORS_NAME, dense, max_rank=64
    )
    assert report.digest is not None, report.faults
    assert (report.missing, report.warnings) == ((), ())
    merged = read_parent(
        "merged", report.digest, StoredAdapter(folder / CONFIG_NAME, folder / TENSORS_NAME), dense
    )
    assert {f.scale for f in merged.plan.plain} == {1.0}
    ours = load_file(folder / TENSORS_NAME)
    assert len(ours) == 6
    peft = merge_with_peft(recipe, configs, states)
    for key, tensor in ours.items():
        theirs = peft.get_parameter(key.replace(".weight", ".merged.weight")).detach().numpy()
        np.testing.assert_array_equal(tensor, theirs, err_msg=key)
        assert np.abs(tensor).max() > 0.01


def test_ranks_that_differ_between_sites_stay(
    parent: ReadParent, factors: Factors, dense: BaseSpec, tmp_path: Path
) -> None:
    sizes = {"self_attn.q_proj": (32, 64), "self_attn.o_proj": (64, 32), "mlp.up_proj": (32, 48)}
    tensors = factors("0.self_attn.q_proj", *sizes["self_attn.q_proj"], rank=2)
    for layer in (0, 1):
        tensors |= factors(f"{layer}.mlp.up_proj", *sizes["mlp.up_proj"], rank=4)
    keys = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 6}, "use_rslora": True}
    only = parent("only", tensors, **keys)
    recipe = MergeRecipe.create([only.digest], [-2.0])
    folder = merge_files(recipe, [only], dense, tmp_path / "merged")
    report = validate(
        (folder / CONFIG_NAME).read_bytes(), folder / TENSORS_NAME, dense, max_rank=64
    )
    assert report.ranks == (2, 4)
    assert (report.missing, report.warnings) == ((), ())
    ours = load_file(folder / TENSORS_NAME)
    for factors_of in only.plan.plain:
        a, b = factors_of.a_name, factors_of.b_name
        product = -2.0 * factors_of.scale * (tensors[b] @ tensors[a])
        np.testing.assert_allclose(ours[b] @ ours[a], product, rtol=1e-5, atol=1e-5)


def test_the_same_recipe_gives_the_same_bytes(
    parent: ReadParent, factors: Factors, dense: BaseSpec, tmp_path: Path
) -> None:
    bots = [parent(f"bot{i}", factors("0.self_attn.q_proj", 32, 64, seed=i)) for i in range(2)]
    recipe = MergeRecipe.create([bot.digest for bot in bots], [1, 1], "dare_ties", 0.5)
    once, again = (merge_files(recipe, bots, dense, tmp_path / name) for name in ("one", "two"))
    for name in (CONFIG_NAME, TENSORS_NAME):
        assert (once / name).read_bytes() == (again / name).read_bytes()
    denser = replace(recipe, density=0.6)
    other = merge_files(denser, bots, dense, tmp_path / "three")
    assert (other / TENSORS_NAME).read_bytes() != (once / TENSORS_NAME).read_bytes()


def test_the_worker_is_a_process_that_says_what_it_refuses(
    parent: ReadParent, factors: Factors, dense: BaseSpec, tmp_path: Path
) -> None:
    bot = parent("bot", factors("0.self_attn.q_proj", 32, 64))
    paths = (("bot", str(bot.stored.config_path), str(bot.stored.tensors_path)),)
    recipe = MergeRecipe.create([A], [1.0])
    job = MergeJob(recipe, paths, HF_CONFIG, "tiny", dense.digest, str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "weft_adapters.merge_worker"],
        input=job.to_json(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {"refused": "'bot' is damaged in the store"}
