"""Every form of adapter that PEFT writes: one line each in `FORMS`.

A form says how its two files are made, by PEFT itself wherever PEFT can make them, and which model
says what the answers are: PEFT's reading of those files, unless the form brings its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.models import third_party_warnings_ignored
from peft import LoraConfig, PeftModel, get_peft_model
from tests.engine.families import ATTENTION, BOTH
from transformers import PreTrainedModel

Build = Callable[[PreTrainedModel, Path, int], None]
"""(a base of its own, the folder to write to, a seed)"""
Reference = Callable[[PreTrainedModel, Path], Any]
"""(a base of its own, the folder that was written) -> the model that says what is right"""


def load_with_peft(model: PreTrainedModel, folder: Path) -> Any:
    return PeftModel.from_pretrained(model, str(folder))


@dataclass(frozen=True)
class Form:
    """`base`: one of `families.CASES`."""

    base: str
    build: Build
    reference: Reference = load_with_peft


def lora(**keys: Any) -> Build:
    """Made and saved by PEFT; `keys` are `LoraConfig`'s."""

    def build(model: PreTrainedModel, folder: Path, seed: int) -> None:
        peft_model = get_peft_model(model, LoraConfig(**keys))
        randomize(peft_model, seed)
        peft_model.save_pretrained(str(folder))

    return build


def randomize(peft_model: Any, seed: int) -> None:
    """Factors so large that an adapter changes most tokens."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.4 * parameter.shape[-1] ** -0.5, generator=generator)


DENSE = "llama, biases, llama3"

FORMS: dict[str, Form] = {
    "a list of modules": Form(DENSE, lora(r=4, target_modules=["q_proj", "down_proj"])),
    "all-linear": Form(DENSE, lora(r=12, target_modules="all-linear", lora_alpha=20)),
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
    "one matrix of experts": Form(
        "qwen3_moe", lora(r=4, target_modules=["o_proj"], target_parameters=BOTH[1:])
    ),
    "both matrices of experts": Form(
        "qwen3_moe", lora(r=3, target_modules=[], target_parameters=BOTH, lora_alpha=5)
    ),
}


def write(form: Form, model: PreTrainedModel, folder: Path, seed: int) -> None:
    with third_party_warnings_ignored():
        form.build(model, folder, seed)


def load_reference(form: Form, model: PreTrainedModel, folder: Path) -> Any:
    with third_party_warnings_ignored():
        return form.reference(model, folder).eval()
