"""Merged adapters as forms: parents made by PEFT, merged by the worker, and PEFT's own merge of the
same parents to say what is right."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from weft_adapters.merge import MergeJob, MergeRecipe
from weft_adapters.merge_worker import run_job
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.store import CONFIG_NAME, TENSORS_NAME
from weft_adapters.validation import validate

BASE_DIGEST = "sha256:" + "0" * 64
# of one rank, as PEFT wants it; scales and modules differ
PARENTS: tuple[dict[str, Any], ...] = (
    {"r": 6, "lora_alpha": 12, "target_modules": "all-linear"},
    {"r": 6, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"]},
    {"r": 6, "lora_alpha": 9, "target_modules": ["q_proj", "o_proj", "up_proj"]},
)


class PeftMerge:
    """`weights`, strategy, density and method as `MergeRecipe.create` takes them; `randomize` gives
    a PEFT model's factors values, by a seed."""

    def __init__(
        self, randomize: Callable[[Any, int], None], weights: Sequence[float], *how: Any
    ) -> None:
        self._randomize, self._weights, self._how = randomize, weights, how

    def build(self, model: PreTrainedModel, folder: Path, seed: int) -> None:
        base = self._base(model)
        for number, keys in enumerate(PARENTS):
            peft_model = get_peft_model(copy.deepcopy(model), LoraConfig(**keys))
            self._randomize(peft_model, 100 * seed + number)
            peft_model.save_pretrained(str(_parent(folder, number)))
        recipe = self._recipe(folder, base)
        paths = []
        for number in range(len(PARENTS)):
            files = _parent(folder, number)
            paths.append((files.name, str(files / CONFIG_NAME), str(files / TENSORS_NAME)))
        folder.mkdir()
        config = json.loads(model.config.to_json_string())
        run_job(MergeJob(recipe, tuple(paths), config, "base", BASE_DIGEST, str(folder)))

    def load(self, model: PreTrainedModel, folder: Path) -> Any:
        """PEFT's merge, its masks drawn from the recipe's seeds."""
        recipe = self._recipe(folder, self._base(model))
        names = [str(number) for number in range(len(PARENTS))]
        merged: Any = PeftModel.from_pretrained(model, str(_parent(folder, 0)), adapter_name="0")
        for number in range(1, len(PARENTS)):
            merged.load_adapter(str(_parent(folder, number)), names[number])
        sites = {id(module): name for name, module in merged.base_model.model.named_modules()}
        merge = merged.base_model._generalized_task_arithmetic_weighted_adapter

        def merge_seeded(strategy: str, ids: Any, weights: Any, target: Any, *rest: Any) -> Any:
            torch.manual_seed(recipe.seed(_site(sites[id(target)])))
            return merge(strategy, ids, weights, target, *rest)

        merged.base_model._generalized_task_arithmetic_weighted_adapter = merge_seeded
        merged.add_weighted_adapter(
            names, list(recipe.weights), "merged", recipe.strategy, density=recipe.density,
            majority_sign_method=recipe.majority_sign_method,
        )  # fmt: skip
        merged.set_adapter("merged")
        return merged

    def _base(self, model: PreTrainedModel) -> BaseSpec:
        return BaseSpec.from_config(json.loads(model.config.to_json_string()), BASE_DIGEST)

    def _recipe(self, folder: Path, base: BaseSpec) -> MergeRecipe:
        digests = []
        for number in range(len(PARENTS)):
            files = _parent(folder, number)
            config = (files / CONFIG_NAME).read_bytes()
            report = validate(config, files / TENSORS_NAME, base, max_rank=64)
            assert report.digest is not None, report.faults
            digests.append(report.digest)
        return MergeRecipe.create(digests, self._weights, *self._how)


def _parent(folder: Path, number: int) -> Path:
    return folder.with_name(f"{folder.name}-parent-{number}")


def _site(module: str) -> Site:
    _, _, layer, _, projection = module.split(".")
    return Site(int(layer), projection)
