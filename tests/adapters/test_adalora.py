"""AdaLoRA's exports: the weights that we serve are those that PEFT serves."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from tests.adapters.exports import (
    ATTENTION,
    assert_same,
    deltas_of,
    dense_model,
    load_adapter,
    peft_deltas,
)

from weft_adapters.sites import BaseSpec, Site
from weft_adapters.validation import validate


def adalora_export(folder: Path, **keys: Any) -> tuple[Any, bytes, Path]:
    from peft import AdaLoraConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AdaLoraConfig(
            task_type="CAUSAL_LM", total_step=10, target_modules=ATTENTION, **keys
        )
        peft_model = get_peft_model(dense_model(), config)
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter)
        peft_model.save_pretrained(str(folder))
        model = PeftModel.from_pretrained(dense_model(), str(folder))
    data = (folder / "adapter_config.json").read_bytes()
    return model, data, folder / "adapter_model.safetensors"


@pytest.mark.parametrize("alpha", [6, 0])
@pytest.mark.parametrize("is_pruned", [True, False])
def test_adalora(dense: BaseSpec, tmp_path: Path, alpha: int, is_pruned: bool) -> None:
    kept = {
        f"model.layers.{layer}.self_attn.{name}.lora_E.default": [i % 3 > layer for i in range(5)]
        for layer in (0, 1)
        for name in ATTENTION[:3]
    }
    kept["model.layers.1.self_attn.k_proj.lora_E.default"] = [False] * 5
    keys = {"rank_pattern": kept} if is_pruned else {}
    model, config, path = adalora_export(tmp_path, init_r=5, lora_alpha=alpha, **keys)
    theirs = {site: d for site, d in peft_deltas(model).items() if np.any(d)}
    assert (Site(1, "k_proj") in theirs) == (not is_pruned)
    assert_same(deltas_of(load_adapter(config, path, dense)), theirs)


def test_singular_values_that_make_a_too_large_are_refused(dense: BaseSpec, tmp_path: Path) -> None:
    _, config, path = adalora_export(tmp_path, init_r=5)
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("lora_E"))
    for factor, dtype, is_fine in ((3e4, "float32", True), (3e4, "float16", False)):
        large = {name: tensors[name] * factor + factor}
        save_file({key: large.get(key, tensor) for key, tensor in tensors.items()}, path)
        report = validate(config, path, dense, max_rank=16, dtype=dtype)
        assert report.ok == is_fine
        assert is_fine or {f.code for f in report.faults} == {"value_too_large"}
    huge = {key: np.full_like(t, 1e8) for key, t in tensors.items() if "lora_B" not in key}
    save_file(tensors | huge, path)
    report = validate(config, path, dense, max_rank=16)
    assert {(f.code, (f.tensor or "")[-6:]) for f in report.faults} == {
        ("value_too_large", "lora_E")
    }


def test_adalora_without_its_singular_values(
    dense: BaseSpec, tmp_path: Path, codes_of: Callable[..., set[str]]
) -> None:
    _, config, path = adalora_export(tmp_path, init_r=5)
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("lora_E"))
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
    assert codes_of(config, path, dense) == {"missing_factor"}
    save_file({**tensors, name: tensors[name][:3]}, path)
    assert codes_of(config, path, dense) == {"wrong_rank"}
    plain = json.dumps({"peft_type": "LORA", "r": 5, "lora_alpha": 1}).encode()
    assert codes_of(plain, path, dense) == {"unmapped_tensor"}
