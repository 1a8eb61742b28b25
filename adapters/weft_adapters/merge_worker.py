"""Merges adapters with PEFT's own utilities, in a process of its own: `python -m` this module.

PEFT takes seconds to import and a merge computes for seconds more; neither may hold up a server's
threads. The job is one JSON object on standard input, the outcome one on standard output: `{}`, or
`{"refused": sentence}`. Knows files alone, no store and no tenant.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from weft_adapters.merge import (
    MergeJob,
    MergeRecipe,
    MergeRefusedError,
    Parent,
    SiteMerge,
    merged_config,
    plan_merge,
    read_parent,
    verify_parent,
)
from weft_adapters.sites import BaseSpec
from weft_adapters.store import CONFIG_NAME, TENSORS_NAME, StoredAdapter
from weft_adapters.tensors import TensorFile

_NICENESS = 10


def _import_merge_utils() -> ModuleType:
    """PEFT's module by itself: the package imports transformers, for longer than a merge takes."""
    package = importlib.util.find_spec("peft")
    if package is None or package.origin is None:
        raise ImportError("PEFT is not installed")
    path = Path(package.origin).parent / "utils" / "merge_utils.py"
    loader = SourceFileLoader("weft_peft_merge_utils", str(path))
    module = ModuleType(loader.name)
    loader.exec_module(module)
    return module


merge_utils = _import_merge_utils()


def merge_tensors(recipe: MergeRecipe, tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """PEFT's merge of tensors of one shape; `weights` `[num_tensors]`. Random masks are drawn from
    torch's global generator."""
    arguments: list[Any] = [list(tensors), weights]
    if recipe.density is not None:
        arguments.append(recipe.density)
    if recipe.strategy.endswith("ties"):
        arguments.append(recipe.majority_sign_method)
    merge = "task_arithmetic" if recipe.strategy == "linear" else recipe.strategy
    merged: Tensor = getattr(merge_utils, merge)(*arguments)
    return merged


def merge_site(
    recipe: MergeRecipe, merge: SiteMerge, files: Sequence[TensorFile]
) -> tuple[Tensor, Tensor]:
    """A float32 `[rank, in]` and B float32 `[out, rank]`; their scale is 1."""
    scaled = [recipe.weights[number] * factors.scale for number, factors in merge.factors]
    roots = torch.tensor([math.sqrt(abs(weight)) for weight in scaled])
    # on one side only, or two negative signs would be none
    signs = torch.tensor([1.0 if weight >= 0 else -1.0 for weight in scaled])
    tensors_a = [_read(files[number], factors.a_name) for number, factors in merge.factors]
    tensors_b = [_read(files[number], factors.b_name) for number, factors in merge.factors]
    torch.manual_seed(recipe.seed(merge.site))
    a = merge_tensors(recipe, tensors_a, roots * signs)
    return a, merge_tensors(recipe, tensors_b, roots)


def _read(file: TensorFile, name: str) -> Tensor:
    return torch.from_numpy(file.read(name))


def run_job(job: MergeJob) -> None:
    """Write the merged adapter's two files; MergeRefusedError where there is no merge."""
    base = BaseSpec.from_config(job.hf_config, job.base_digest)
    parents = [
        read_parent(name, digest, StoredAdapter(Path(config), Path(tensors)), base)
        for digest, (name, config, tensors) in zip(job.recipe.parents, job.parents, strict=True)
    ]
    for parent in parents:
        verify_parent(parent, base)
    merges = plan_merge(parents)
    output = Path(job.output_dir)
    (output / CONFIG_NAME).write_bytes(merged_config(merges, job.base_name, base))
    save_file(_merge_all(job.recipe, merges, parents), output / TENSORS_NAME)


def _merge_all(
    recipe: MergeRecipe, merges: Sequence[SiteMerge], parents: Sequence[Parent]
) -> dict[str, Tensor]:
    tensors = {}
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # PEFT's, that a density of 1 prunes nothing
        warnings.filterwarnings("ignore", "The density", UserWarning)
        files = [stack.enter_context(parent.open()) for parent in parents]
        for merge in merges:
            a, b = merge_site(recipe, merge, files)
            first = merge.factors[0][1]
            tensors[first.a_name], tensors[first.b_name] = a.contiguous(), b.contiguous()
    return tensors


def main() -> None:
    os.nice(_NICENESS)  # it shares the machine with an engine
    torch.set_num_threads(1)
    outcome = {}
    try:
        run_job(MergeJob.from_json(sys.stdin.read()))
    except MergeRefusedError as error:
        outcome["refused"] = str(error)
    sys.stdout.write(json.dumps(outcome))


if __name__ == "__main__":
    main()
