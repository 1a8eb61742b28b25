"""The worker's merges are PEFT's, whatever the strategy."""

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

from weft_adapters.merge import MergeJob, MergeRecipe, Parent, read_parent
from weft_adapters.merge_worker import run_job
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.store import CONFIG_NAME, TENSORS_NAME, StoredAdapter
from weft_adapters.validation import validate

Tensors = dict[str, NDArray[Any]]
Factors = Callable[..., Tensors]
ReadParent = Callable[..., Parent]

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


def merge_files(recipe: MergeRecipe, parents: list[Parent], dense: BaseSpec, folder: Path) -> Path:
    folder.mkdir()
    paths = [(p.name, str(p.stored.config_path), str(p.stored.tensors_path)) for p in parents]
    run_job(MergeJob(recipe, tuple(paths), HF_CONFIG, "tiny", dense.digest, str(folder)))
    return folder


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
    recipe = MergeRecipe.create(["sha256:" + "a" * 64], [1.0])
    job = MergeJob(recipe, paths, HF_CONFIG, "tiny", dense.digest, str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "weft_adapters.merge_worker"],
        input=job.to_json(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {"refused": "'bot' is damaged in the store"}
