"""Adapters that PEFT itself writes of tiny models, and what each adds to the base's weights.

Legend: E experts, O out, I in.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from weft_adapters.config import parse_config
from weft_adapters.format import load, resolve
from weft_adapters.header import read_header_path
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.tensors import TensorFile

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
PREFIX = "base_model.model.model.layers"
SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
WriteAdapter = Callable[..., tuple[bytes, Path]]
Factors = Callable[..., dict[str, NDArray[Any]]]


def load_adapter(config_bytes: bytes, path: Path, base: BaseSpec) -> dict[Site, SiteWeights]:
    header = read_header_path(path)
    plan = resolve(parse_config(config_bytes), header, base)
    assert not plan.faults, plan.faults
    with TensorFile(path, header) as file:
        weights = load(plan, file, base)
    assert {site: w.rank for site, w in weights.items()} == plan.sites(base)
    return weights


def deltas_of(weights: dict[Site, SiteWeights]) -> dict[Site, NDArray[Any]]:
    return {site: w.scale * (w.b.T @ w.a) for site, w in weights.items()}


def export(model: Any, folder: Path, **keys: Any) -> tuple[Any, bytes, Path]:
    """A PEFT model with random factors, and the two files that PEFT saves of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of rank_pattern together with rsLoRA
        peft_model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **keys))
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter)
        peft_model.save_pretrained(str(folder))
    config = (folder / "adapter_config.json").read_bytes()
    return peft_model, config, folder / "adapter_model.safetensors"


def peft_deltas(peft_model: Any) -> dict[Site, NDArray[Any]]:
    """What PEFT would add to the weight of each site."""
    found: dict[Site, NDArray[Any]] = {}
    for name, module in peft_model.base_model.model.named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        layer = int(name.split(".")[2])
        delta = module.get_delta_weight("default").detach().numpy()
        parameter = getattr(module, "parameter_name", "weight")
        if parameter == "weight":
            last = name.split(".")[-1]
            found[Site(layer, "router" if last == "gate" else last)] = delta
            continue
        for expert, delta_OI in enumerate(delta):
            halves = np.split(delta_OI, 2) if parameter == "gate_up_proj" else [delta_OI]
            names = MLP[:2] if parameter == "gate_up_proj" else MLP[2:]
            for projection, half in zip(names, halves, strict=True):
                found[Site(layer, projection, expert)] = half
    return found


def assert_same(ours: dict[Site, NDArray[Any]], theirs: dict[Site, NDArray[Any]]) -> None:
    assert set(ours) == set(theirs)
    for site, delta in theirs.items():
        np.testing.assert_allclose(ours[site], delta, rtol=1e-4, atol=1e-4, err_msg=str(site))


def dense_model() -> Any:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES))


def moe_model() -> Any:
    config = Qwen3MoeConfig(
        **SIZES,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        mlp_only_layers=[0],
    )
    return Qwen3MoeForCausalLM(config)


def mixtral() -> BaseSpec:
    config = {**SIZES, "model_type": "mixtral", "num_local_experts": 4}
    return BaseSpec.from_config(config, "sha256:" + "4" * 64)


def qwen2_moe() -> BaseSpec:
    config = {
        **SIZES, "model_type": "qwen2_moe", "moe_intermediate_size": 24, "num_experts": 4,
        "shared_expert_intermediate_size": 40, "mlp_only_layers": [0],
    }  # fmt: skip
    return BaseSpec.from_config(config, "sha256:" + "5" * 64)
