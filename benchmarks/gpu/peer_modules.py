"""Imports others' released files from a folder: nothing of them is in this repository.

Their packages import whole engines. Here the packages are empty shells whose search path is the
folder, so that the files of the kernels are imported as they are, and the few modules that they
ask for beside them are stand-ins.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl


def shell(name: str, folder: Path, **attributes: Any) -> None:
    """A package without code of its own, whose modules are found in the folder."""
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = package
    for key, value in attributes.items():
        setattr(sys.modules[name], key, value)


def stand_in(name: str, **attributes: Any) -> None:
    """A module that has these attributes and nothing else."""
    if name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
    for key, value in attributes.items():
        setattr(sys.modules[name], key, value)


def ignore(*_: object, **__: object) -> None:
    """For what need not happen: their messages, their registering of operators."""


def _h2d(values: Any, dtype: torch.dtype, device: torch.device, **_: object) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).to(device)


def refuse(*_: object, **__: object) -> None:
    """Their files fall back to the plain functions when an operator cannot be registered."""
    raise AttributeError("operators are not registered here")


def load_vllm(folder: Path) -> SimpleNamespace:
    """Its settings, and the functions and the metadata of its dense kernels."""
    is_cuda = torch.cuda.is_available()
    for name in ("vllm", "vllm.lora", "vllm.lora.ops", "vllm.lora.ops.triton_ops", "vllm.utils"):
        shell(name, folder)
    envs = SimpleNamespace(
        VLLM_BATCH_INVARIANT=False, VLLM_TUNED_CONFIG_FOLDER=None, VLLM_LORA_DISABLE_PDL=False,
        VLLM_LORA_ENABLE_DUAL_STREAM=False,
    )  # fmt: skip
    if "vllm.envs" not in sys.modules:
        stand_in("vllm.envs", **vars(envs))
        shell("vllm", folder, envs=sys.modules["vllm.envs"])
    log = SimpleNamespace(
        info=ignore, warning=ignore, debug=ignore,
        info_once=ignore, warning_once=ignore,
    )  # fmt: skip
    stand_in("vllm.logger", init_logger=lambda _: log)
    capability = torch.cuda.get_device_capability() if is_cuda else (0, 0)
    platform = SimpleNamespace(
        is_cuda=lambda: is_cuda, is_cuda_alike=lambda: is_cuda, is_xpu=lambda: False,
        has_device_capability=lambda value: capability[0] * 10 + capability[1] >= value,
        is_device_capability=lambda value: capability[0] * 10 + capability[1] == value,
        num_compute_units=lambda index: (
            torch.cuda.get_device_properties(index).multi_processor_count
        ),
    )  # fmt: skip
    stand_in("vllm.platforms", current_platform=platform)
    stand_in("vllm.triton_utils", tl=tl, triton=triton)
    stand_in("vllm.utils.math_utils", next_power_of_2=triton.next_power_of_2)
    stand_in("vllm.utils.torch_utils", async_tensor_h2d=_h2d, direct_register_custom_op=refuse)
    root = "vllm.lora.ops.triton_ops"
    return SimpleNamespace(
        envs=sys.modules["vllm.envs"],
        utils=importlib.import_module(f"{root}.utils"),
        shrink=importlib.import_module(f"{root}.lora_shrink_op").lora_shrink,
        expand=importlib.import_module(f"{root}.lora_expand_op").lora_expand,
        meta=importlib.import_module(f"{root}.lora_kernel_metadata").LoRAKernelMeta,
    )
