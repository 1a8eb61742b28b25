"""Adapters of experts as PEFT on transformers 5 cannot make them: written by hand.

PEFT reads some of them; for the others their product is merged into the base.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from weft_adapters.sites import MLP_PROJECTIONS, ROUTER, BaseSpec, Site
from weft_adapters.store import CONFIG_NAME, TENSORS_NAME

LAYERS = "base_model.model.model.layers"
Tensors = dict[str, NDArray[Any]]
Build = Callable[[PreTrainedModel, Path, int], None]


def modules_per_expert(**keys: Any) -> Build:
    """Written by hand as PEFT did on transformers 4, where experts and router were modules; on
    transformers 5 it reads them, but cannot make them."""

    def build(model: PreTrainedModel, folder: Path, seed: int) -> None:
        base = base_spec(model)
        names, rank = base.expert_names, keys["r"]
        tensors: Tensors = {}
        for site in base.sites():
            if site.expert is not None:
                spelled = names.spell(site.projection)
                module = f"{names.block}.experts.{site.expert}.{spelled}"
                tensors |= factors(f"{site.layer}.{module}", rank, *base.shape(site), seed)
            elif site.projection == ROUTER and "gate" in keys["target_modules"]:
                module = f"{site.layer}.{names.block}.gate"
                tensors |= factors(module, rank, *base.shape(site), seed)
        save_by_hand(folder, tensors, **keys)

    return build


def shared_outer(num_layers: int, is_split: bool = False, **keys: Any) -> Build:
    """As SGLang serves them: one A for gate and up of all experts, one B for down of all;
    `is_split`: what is not shared as a module per expert."""

    def build(model: PreTrainedModel, folder: Path, seed: int) -> None:
        base, rank = base_spec(model), keys["r"]
        tensors: Tensors = {}
        for layer in range(num_layers):
            for name in MLP_PROJECTIONS:
                num_in, num_out = base.shape(Site(layer, name, 0))
                num_a, num_b = (base.num_experts, 1)[:: -1 if name != "down_proj" else 1]
                module = f"{LAYERS}.{layer}.mlp.experts.{name}"
                rng = np.random.default_rng([seed, layer, len(name)])
                a = rng.standard_normal((num_a, rank, num_in)) * 0.4 * num_in**-0.5
                b = rng.standard_normal((num_b, num_out, rank)) * 0.4 * rank**-0.5
                tensors[f"{module}.lora_A.weight"] = a.astype(np.float32)
                tensors[f"{module}.lora_B.weight"] = b.astype(np.float32)
        save_by_hand(folder, split_experts(tensors) if is_split else tensors, **keys)

    return build


def layout_of_peft_0_18(**keys: Any) -> Build:
    """Fused experts with `in` and `out` the other way round, as PEFT wrote them up to 0.18."""

    def build(model: PreTrainedModel, folder: Path, seed: int) -> None:
        base, rank = base_spec(model), keys["r"]
        rng = np.random.default_rng(seed)
        tensors: Tensors = {}
        for layer in sorted(base.moe_layers):
            for place, parameter in (("base_layer.", "gate_up_proj"), ("", "down_proj")):
                shape = getattr(experts_of(model, layer), parameter).shape
                a = rng.standard_normal((rank * shape[0], shape[1])) * 0.4 * rank**-0.5
                b = rng.standard_normal((shape[2], rank * shape[0])) * 0.4 * shape[2] ** -0.5
                name = f"{LAYERS}.{layer}.mlp.experts.{place}lora"
                tensors[f"{name}_A.weight"] = a.astype(np.float32)
                tensors[f"{name}_B.weight"] = b.astype(np.float32)
        save_by_hand(folder, tensors, **keys)
        path = folder / CONFIG_NAME
        path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_version": "0.18.1"}))

    return build


def merge_layout_of_peft_0_18(model: Any, folder: Path) -> Any:
    """delta[e] = (B_e A_e)^T, added to the parameters as that PEFT did."""
    config = json.loads((folder / CONFIG_NAME).read_text())
    tensors = {key: torch.tensor(t) for key, t in load_file(folder / TENSORS_NAME).items()}
    for name in [name for name in tensors if "lora_A" in name]:
        parameter = "gate_up_proj" if "base_layer" in name else "down_proj"
        weight = getattr(experts_of(model, int(name.split("layers.")[1].split(".")[0])), parameter)
        a, b = tensors[name], tensors[name.replace("_A.", "_B.")]
        a = a.reshape(len(weight), -1, a.shape[1])
        b = b.reshape(b.shape[0], -1, len(weight))
        with torch.no_grad():
            weight += config["lora_alpha"] / config["r"] * torch.einsum("ore,eri->eio", b, a)
    return model


def experts_of(model: Any, layer: int) -> Any:
    return model.get_submodule(f"model.layers.{layer}.mlp.experts")


def split_experts(tensors: Tensors) -> Tensors:
    split: Tensors = {}
    for name, tensor in tensors.items():
        if len(tensor) == 1:
            split[name] = tensor
        for expert, own in enumerate(tensor if len(tensor) > 1 else ()):
            split[name.replace("experts.", f"experts.{expert}.")] = own
    return split


def stack_experts(tensors: Tensors) -> Tensors:
    """The other way round."""
    stacks: dict[str, list[NDArray[Any]]] = {}
    for name in sorted(tensors, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
        stacks.setdefault(re.sub(r"experts\.\d+", "experts", name), []).append(tensors[name])
    return {name: np.stack(own) if own[0].ndim == 2 else own[0] for name, own in stacks.items()}


def merge_experts(model: Any, folder: Path) -> Any:
    """Where PEFT cannot read a form of experts: each one's product is added to its weights."""
    config = json.loads((folder / CONFIG_NAME).read_text())
    tensors = stack_experts(load_file(folder / TENSORS_NAME))
    for name in [name for name in tensors if "lora_A" in name]:
        a, b = torch.tensor(tensors[name]), torch.tensor(tensors[name.replace("_A.", "_B.")])
        delta = config["lora_alpha"] / config["r"] * (b @ a)  # [E, out, in]: either has all E
        layer, projection = re.findall(r"layers\.(\d+)\..*experts\.(\w+)\.", name)[0]
        experts = experts_of(model, layer)
        width = delta.shape[1]
        with torch.no_grad():
            if projection == "down_proj":
                experts.down_proj += delta
            else:
                first = 0 if projection == "gate_proj" else width
                experts.gate_up_proj[:, first : first + width] += delta
    return model


def with_magnitudes(build_factors: Build) -> Build:
    """DoRA on factors of experts by module, around the lengths of the base's rows."""

    def build(model: PreTrainedModel, folder: Path, seed: int) -> None:
        build_factors(model, folder, seed)
        tensors, generator = load_file(folder / TENSORS_NAME), torch.Generator().manual_seed(seed)
        for module, rows in expert_rows(model, tensors):
            lengths = rows.norm(dim=1)
            magnitude = lengths * (torch.rand(lengths.shape, generator=generator) + 0.5)
            tensors[f"{module}.lora_magnitude_vector"] = magnitude.numpy()
        save_file(tensors, folder / TENSORS_NAME, metadata={"format": "pt"})

    return build


def merge_dora_experts(model: Any, folder: Path) -> Any:
    """PEFT does it on modules, which transformers 5 has none of: each expert's rows are adapted and
    brought to their magnitudes."""
    config = json.loads((folder / CONFIG_NAME).read_text())
    tensors = load_file(folder / TENSORS_NAME)
    for module, rows in expert_rows(model, tensors):
        a, b, magnitude = (
            torch.tensor(tensors[f"{module}.{role}"])
            for role in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
        )
        rows += config["lora_alpha"] / config["r"] * (b @ a)
        rows *= (magnitude / rows.norm(dim=1))[:, None]
    return model


def expert_rows(model: Any, tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """The modules of experts that have factors, and views of the base's weights `[out, in]`."""
    for name in [name for name in tensors if ".experts." in name and "lora_A" in name]:
        layer, expert, projection = re.findall(r"layers\.(\d+)\..*experts\.(\d+)\.(\w+)\.", name)[0]
        experts = model.get_submodule(f"model.layers.{layer}.mlp.experts")
        both = experts.gate_up_proj.detach()[int(expert)].chunk(2)
        down = experts.down_proj.detach()[int(expert)]
        rows = {"gate_proj": both[0], "up_proj": both[1], "down_proj": down}[projection]
        yield name.removesuffix(".lora_A.weight"), rows


def base_spec(model: Any) -> BaseSpec:
    return BaseSpec.from_config(model.config.to_dict(), "sha256:" + "0" * 64)


def factors(module: str, rank: int, num_in: int, num_out: int, seed: int) -> Tensors:
    rng = np.random.default_rng([seed, *module.encode()])
    name = f"{LAYERS}.{module}.lora"
    a = rng.standard_normal((rank, num_in)) * 0.4 * num_in**-0.5
    b = rng.standard_normal((num_out, rank)) * 0.4 * rank**-0.5
    return {f"{name}_A.weight": a.astype(np.float32), f"{name}_B.weight": b.astype(np.float32)}


def save_by_hand(folder: Path, tensors: Tensors, **keys: Any) -> None:
    config = LoraConfig(**keys)
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file(tensors, folder / TENSORS_NAME, metadata={"format": "pt"})
