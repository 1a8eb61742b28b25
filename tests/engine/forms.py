"""Every form of adapter that PEFT writes: one line each in `FORMS`.

A form says how its two files are made, by PEFT itself wherever PEFT can make them, and which model
says what the answers are: PEFT's reading of those files, unless the form brings its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.models import third_party_warnings_ignored
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from tests.engine.expert_forms import (
    layout_of_peft_0_18,
    merge_dora_experts,
    merge_experts,
    merge_layout_of_peft_0_18,
    modules_per_expert,
    shared_outer,
    with_magnitudes,
)
from tests.engine.families import ATTENTION, BOTH
from tests.engine.merges import PeftMerge
from tests.engine.vocabulary_forms import VOCABULARY_FORMS
from transformers import PreTrainedModel

from weft_adapters.store import CONFIG_NAME

Build = Callable[[PreTrainedModel, Path, int], None]
"""(a base of its own, the folder to write to, a seed)"""
Reference = Callable[[PreTrainedModel, Path], Any]
"""(a base of its own, the folder that was written) -> the model that says what is right"""


def load_with_peft(model: PreTrainedModel, folder: Path) -> Any:
    return PeftModel.from_pretrained(model, str(folder))


@dataclass(frozen=True)
class Form:
    """`base`: one of `families.CASES`; `num_added`: tokens that it has beyond the base's."""

    base: str
    build: Build
    reference: Reference = load_with_peft
    num_added: int = 0


def lora(**keys: Any) -> Build:
    """Made and saved by PEFT; `keys` are `LoraConfig`'s."""

    def build(model: PreTrainedModel, folder: Path, seed: int) -> None:
        peft_model = get_peft_model(model, LoraConfig(**keys))
        randomize(peft_model, seed)
        peft_model.save_pretrained(str(folder))

    return build


def randomize(peft_model: Any, seed: int) -> None:
    """Factors so large that an adapter changes most tokens; magnitudes around those of the base,
    and the biases that are trained around its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) + 0.5)
            elif name.endswith(".bias") and parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
            elif "lora_" in name:
                parameter.normal_(0.0, 0.4 * parameter.shape[-1] ** -0.5, generator=generator)


def fan_in_fan_out(**keys: Any) -> Build:
    """What PEFT takes to be false of linear layers, left true in the file."""

    def build(model: PreTrainedModel, folder: Path, seed: int) -> None:
        lora(**keys)(model, folder, seed)
        path = folder / CONFIG_NAME
        path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": True}))

    return build


def adalora(kept: dict[str, list[bool]] | None = None, **keys: Any) -> Build:
    """`kept`: which singular values are left, by module; the others PEFT prunes as it saves."""

    def build(model: PreTrainedModel, folder: Path, seed: int) -> None:
        config = AdaLoraConfig(total_step=100, **keys)
        peft_model = get_peft_model(model, config)
        randomize(peft_model, seed)
        if kept is not None:
            pattern = {f"{module}.lora_E.default": flags for module, flags in kept.items()}
            config.rank_pattern = pattern
        peft_model.save_pretrained(str(folder))

    return build


def converted(init: Any, **keys: Any) -> Build:
    """Trained from an initialisation that changes the base, and saved as plain LoRA."""

    def build(model: PreTrainedModel, folder: Path, seed: int) -> None:
        config = LoraConfig(init_lora_weights=init, **keys)
        peft_model = get_peft_model(model, config)
        initial = folder.with_name(f"{folder.name}-initial")
        config.init_lora_weights = True
        peft_model.save_pretrained(str(initial))
        config.init_lora_weights = init
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in peft_model.named_parameters():
                if "lora_" in name:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(noise, alpha=0.3 * parameter.shape[-1] ** -0.5)
        peft_model.save_pretrained(
            str(folder), path_initial_model_for_weight_conversion=str(initial)
        )

    return build


DENSE = "llama, biases, llama3"
MOE = "qwen3_moe"
PRUNED = {
    f"model.layers.{layer}.self_attn.{name}": [rank % 3 != layer for rank in range(7)]
    for layer in (0, 1)
    for name in ATTENTION
} | {"model.layers.1.self_attn.k_proj": [False] * 7}


def merged(weights: Sequence[float], *how: Any) -> Form:
    """What three adapters are merged to, against PEFT's merge of them."""
    merge = PeftMerge(randomize, weights, *how)
    return Form(DENSE, merge.build, merge.load)


FORMS: dict[str, Form] = {
    "a list of modules": Form(DENSE, lora(r=4, target_modules=["q_proj", "down_proj"])),
    "an expression": Form(
        DENSE, lora(r=4, target_modules=r"^(?!.*layers\.1).*(self_attn|mlp)\.\w+_proj")
    ),
    "all-linear": Form(DENSE, lora(r=12, target_modules="all-linear", lora_alpha=20)),
    "all but some modules": Form(
        DENSE, lora(r=4, target_modules="all-linear", exclude_modules=["q_proj", "0.mlp.up_proj"])
    ),
    "some layers": Form(
        DENSE,
        lora(r=8, target_modules=ATTENTION, layers_to_transform=[1], layers_pattern="layers"),
    ),
    "rslora": Form(DENSE, lora(r=9, target_modules=ATTENTION, use_rslora=True)),
    "patterns of rank and alpha": Form(
        DENSE,
        lora(
            r=8,
            target_modules="all-linear",
            rank_pattern={"layers.1.self_attn.q_proj": 24, "mlp.*": 3},
            alpha_pattern={r"layers\.0\..*proj": 5, "up_proj": 2},
        ),
    ),
    "fan_in_fan_out": Form(DENSE, fan_in_fan_out(r=4, target_modules=["k_proj", "up_proj"])),
    "adalora": Form(DENSE, adalora(init_r=6, target_modules=ATTENTION, lora_alpha=12)),
    "adalora, pruned": Form(
        DENSE, adalora(PRUNED, init_r=7, target_modules=[*ATTENTION, "up_proj"], lora_alpha=14)
    ),
    "pissa as plain lora": Form(DENSE, converted("pissa", r=4, target_modules=ATTENTION)),
    "olora as plain lora": Form(
        DENSE, converted("olora", r=4, target_modules=["v_proj", "up_proj"], use_rslora=True)
    ),
    "dora": Form(DENSE, lora(r=4, target_modules="all-linear", use_dora=True)),
    "dora, patterns, rslora": Form(
        DENSE,
        lora(
            r=9,
            target_modules=[*ATTENTION, "up_proj"],
            use_dora=True,
            use_rslora=True,
            rank_pattern={"layers.1.self_attn.q_proj": 17, "up_proj": 3},
            alpha_pattern={"v_proj": 2},
        ),
    ),
    "biases of adapted modules": Form(
        DENSE, lora(r=4, target_modules=["q_proj", "o_proj", "down_proj"], bias="lora_only")
    ),
    "all biases": Form(DENSE, lora(r=3, target_modules=["k_proj"], bias="all")),
    "dora and all biases": Form(
        DENSE, lora(r=5, target_modules=[*ATTENTION, "gate_proj"], bias="all", use_dora=True)
    ),
    "one matrix of experts": Form(
        MOE, lora(r=4, target_modules=["o_proj"], target_parameters=BOTH[1:])
    ),
    "both matrices of experts": Form(
        MOE, lora(r=3, target_modules=[], target_parameters=BOTH, lora_alpha=5)
    ),
    "both matrices of experts, as PEFT 0.18 has them": Form(
        MOE,
        layout_of_peft_0_18(r=4, target_modules=[], target_parameters=BOTH),
        merge_layout_of_peft_0_18,
    ),
    "router": Form(MOE, lora(r=2, target_modules=[], target_parameters=["gate.weight"])),
    "router and experts": Form(MOE, lora(r=5, target_modules="all-linear")),
    "a module per expert": Form(
        MOE,
        modules_per_expert(r=3, target_modules=["gate_proj", "up_proj", "down_proj"]),
    ),
    "a side that all experts share": Form(
        MOE,
        shared_outer(2, r=4, target_modules=["gate_proj", "up_proj", "down_proj"]),
        merge_experts,
    ),
    "a shared side, and a module per expert": Form(
        MOE,
        shared_outer(2, is_split=True, r=2, target_modules=["gate_proj", "up_proj", "down_proj"]),
        merge_experts,
    ),
    "dora on a module per expert": Form(
        MOE,
        with_magnitudes(
            modules_per_expert(
                r=3, target_modules=["gate_proj", "up_proj", "down_proj"], use_dora=True
            )
        ),
        merge_dora_experts,
    ),
    "mixtral, all-linear": Form("mixtral", lora(r=6, target_modules="all-linear")),
    "mixtral, a module per expert": Form(
        "mixtral", modules_per_expert(r=2, target_modules=["w1", "w2", "w3", "gate"], lora_alpha=4)
    ),
    "olmoe, all-linear": Form("olmoe", lora(r=3, target_modules="all-linear")),
    "olmoe, a module per expert": Form(
        "olmoe", modules_per_expert(r=4, target_modules=["gate_proj", "up_proj", "down_proj"])
    ),
    "qwen2_moe, all-linear": Form("qwen2_moe", lora(r=4, target_modules="all-linear")),
    "qwen2_moe, router": Form(
        "qwen2_moe", lora(r=4, target_modules=["v_proj"], target_parameters=["mlp.gate.weight"])
    ),
    "qwen2_moe, a module per expert": Form(
        "qwen2_moe",
        modules_per_expert(r=4, target_modules=["gate_proj", "up_proj", "down_proj"]),
        merge_experts,  # PEFT converts modules of experts for the other families only
    ),
    "qwen2_moe, dora on attention and the shared expert": Form(
        "qwen2_moe",
        lora(
            r=4,
            target_modules=r".*(q_proj|v_proj|shared_expert\.\w+_proj|shared_expert_gate)",
            use_dora=True,
            bias="lora_only",
        ),
    ),
    "qwen2_moe, experts": Form(
        "qwen2_moe", lora(r=3, target_modules=["shared_expert_gate"], target_parameters=BOTH)
    ),
    "merged, linear": merged([0.5, 0.7, -0.3]),
    "merged, ties": merged([0.6, 1.0, 0.5], "ties", 0.6),
    "merged, dare_linear": merged([0.6, 0.4, 0.5], "dare_linear", 0.7),
    "merged, dare_ties": merged([0.6, 0.4, 0.9], "dare_ties", 0.7, "frequency"),
}

FORMS |= {
    name: Form(base, own.build, own.load, own.num_added)
    for name, (base, own) in VOCABULARY_FORMS.items()
}


def write(form: Form, model: PreTrainedModel, folder: Path, seed: int) -> None:
    with third_party_warnings_ignored():
        form.build(model, folder, seed)


def load_reference(form: Form, model: PreTrainedModel, folder: Path) -> Any:
    with third_party_warnings_ignored():
        return form.reference(model, folder).eval()
