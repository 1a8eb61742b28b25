"""Others' released LoRA kernels, loaded from a folder: nothing of them is in this repository.

The folder holds what these wheels unpack to, or the named parts of it:

    vllm/lora/ops/triton_ops/            of vllm 0.33.0
    sglang/kernels/ops/lora/, sglang/srt/lora/   of sglang 0.5.23

Their packages import whole engines. Here the packages are empty shells whose search path is the
folder, so that the files of the kernels are imported as they are, and the few modules that they
ask for beside them are stand-ins made below.
"""

from __future__ import annotations

import enum
import importlib
import json
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from benchmarks.gpu.lora_problem import Problem

from weft_kernels.cuda.configs import Launch

Prepare = Callable[[Problem], Launch]

_VLLM = Path("vllm/lora/ops/triton_ops")
_SGLANG = Path("sglang/srt/lora/dense")


def find_peers(folder: Path | None) -> dict[str, Prepare]:
    """Those that the folder holds; ValueError for a folder that holds none."""
    if folder is None:
        return {}
    peers: dict[str, Prepare] = {}
    if (folder / _VLLM).is_dir():
        peers["vllm"] = partial(_vllm, folder, specialize=False, use_pdl=False)
        peers["vllm, specialized, PDL"] = partial(_vllm, folder, specialize=True, use_pdl=True)
    if (folder / _SGLANG).is_dir():
        peers["sglang triton"] = partial(_sglang_triton, folder)
        if torch.cuda.is_available():
            # asks for a device, also where the rest could be interpreted
            peers["sglang triton_v2"] = partial(_sglang_v2, folder)
    if not peers:
        raise ValueError(f"{folder} holds neither {_VLLM} nor {_SGLANG}")
    return peers


def _shell(name: str, folder: Path, **attributes: Any) -> None:
    """A package without code of its own, whose modules are found in the folder."""
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = package
    for key, value in attributes.items():
        setattr(sys.modules[name], key, value)


def _stand_in(name: str, **attributes: Any) -> None:
    if name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
    for key, value in attributes.items():
        setattr(sys.modules[name], key, value)


def _is_sm90(*_: object) -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def _no_custom_op(*_: object, **__: object) -> None:
    """Their files fall back to the plain functions when an operator is not registered."""


def _h2d(values: Any, dtype: torch.dtype, device: torch.device, **_: object) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).to(device)


def _load_vllm(folder: Path) -> SimpleNamespace:
    is_cuda = torch.cuda.is_available()
    for name in ("vllm", "vllm.lora", "vllm.lora.ops", "vllm.lora.ops.triton_ops", "vllm.utils"):
        _shell(name, folder)
    envs = SimpleNamespace(
        VLLM_BATCH_INVARIANT=False, VLLM_TUNED_CONFIG_FOLDER=None, VLLM_LORA_DISABLE_PDL=False,
        VLLM_LORA_ENABLE_DUAL_STREAM=False,
    )  # fmt: skip
    if "vllm.envs" not in sys.modules:
        _stand_in("vllm.envs", **vars(envs))
        _shell("vllm", folder, envs=sys.modules["vllm.envs"])
    log = SimpleNamespace(
        info=_no_custom_op, warning=_no_custom_op, debug=_no_custom_op,
        info_once=_no_custom_op, warning_once=_no_custom_op,
    )  # fmt: skip
    _stand_in("vllm.logger", init_logger=lambda _: log)
    capability = torch.cuda.get_device_capability() if is_cuda else (0, 0)
    platform = SimpleNamespace(
        is_cuda=lambda: is_cuda, is_cuda_alike=lambda: is_cuda, is_xpu=lambda: False,
        has_device_capability=lambda value: capability[0] * 10 + capability[1] >= value,
        is_device_capability=lambda value: capability[0] * 10 + capability[1] == value,
        num_compute_units=lambda index: (
            torch.cuda.get_device_properties(index).multi_processor_count
        ),
    )  # fmt: skip
    _stand_in("vllm.platforms", current_platform=platform)
    _stand_in("vllm.triton_utils", tl=tl, triton=triton)
    _stand_in("vllm.utils.math_utils", next_power_of_2=triton.next_power_of_2)
    _stand_in("vllm.utils.torch_utils", async_tensor_h2d=_h2d, direct_register_custom_op=_refuse)
    root = "vllm.lora.ops.triton_ops"
    return SimpleNamespace(
        envs=sys.modules["vllm.envs"],
        utils=importlib.import_module(f"{root}.utils"),
        shrink=importlib.import_module(f"{root}.lora_shrink_op").lora_shrink,
        expand=importlib.import_module(f"{root}.lora_expand_op").lora_expand,
        meta=importlib.import_module(f"{root}.lora_kernel_metadata").LoRAKernelMeta,
    )


def _refuse(*_: object, **__: object) -> None:
    raise AttributeError("operators are not registered here")


def _vllm(folder: Path, problem: Problem, *, specialize: bool, use_pdl: bool) -> Launch:
    """Shrink into float32 and expand. specialize: grids for the adapters in use, not for all slots,
    which are as many here; with PDL as in their second stream's mode."""
    vllm = _load_vllm(folder)
    shape = problem.shape
    a, b = problem.padded()
    a_slabs = [part[:, None].contiguous() for part in a]
    b_slabs = [part.transpose(1, 2)[:, None].contiguous() for part in b]
    # their tables of pointers outlive the memory that they point to
    vllm.utils._LORA_A_PTR_DICT.pop(tuple(part.data_ptr() for part in a_slabs), None)
    vllm.utils._LORA_B_PTR_DICT.pop(tuple(part.data_ptr() for part in b_slabs), None)
    meta = vllm.meta.make(shape.num_adapters, shape.num_tokens, problem.x.device)
    meta.prepare_tensors(problem.slots)
    arguments = meta.meta_args(shape.num_tokens, specialize)
    size = (len(shape.widths), shape.num_tokens, max(shape.ranks))
    h = torch.empty(size, dtype=torch.float32, device=problem.x.device)

    def launch() -> None:
        vllm.envs.VLLM_LORA_ENABLE_DUAL_STREAM = use_pdl
        vllm.shrink(problem.x, a_slabs, h, *arguments, 1.0)
        vllm.expand(h, b_slabs, problem.y, *arguments, add_inputs=True)

    # the tables of pointers are copied to the device in the first call, which no graph may hold
    launch()
    problem.y.zero_()
    return launch


class _Phase(enum.StrEnum):
    """SGLang's, which its plan table is keyed by."""

    DECODE = "decode"
    PREFILL = "prefill"


class _Settings:
    """Its environment settings: none is set."""

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(get=lambda: None)


class _Struct:
    """msgspec's class, as far as the routes use it: a frozen dataclass of keywords."""

    def __init_subclass__(cls, **_: object) -> None:
        dataclass(kw_only=True)(cls)


class _Model:
    """pydantic's; the plan table is read below instead."""


def _load_sglang(folder: Path) -> SimpleNamespace:
    for name in (
        "sglang", "sglang.srt", "sglang.srt.lora", "sglang.srt.lora.dense", "sglang.kernels",
        "sglang.srt.utils", "sglang.kernels.ops", "sglang.kernels.ops.lora",
        "sglang.kernels.ops.lora.common", "sglang.kernels.ops.lora.dense",
        "sglang.kernels.ops.lora.moe", "sglang.kernels.ops.moe", "sglang.kernels.jit",
    ):  # fmt: skip
        _shell(name, folder)
    _stand_in("sglang.srt.environ", envs=_Settings())
    _stand_in("sglang.srt.utils.common", direct_register_custom_op=_no_custom_op)
    _stand_in("sglang.kernels.jit.utils", is_arch_support_pdl=_is_sm90)
    _stand_in("sglang.kernels.ops.moe.moe_align", moe_align_block_size=_refuse)
    _stand_in(
        "sglang.srt.lora.utils",
        Phase=_Phase,
        LoRABatchInfo=SimpleNamespace,
        architecture_for_capability=lambda major: "sm90" if major == 9 else "default",
    )
    if "msgspec" not in sys.modules:
        _stand_in("msgspec", Struct=_Struct)
    own = {name: sys.modules.get(name) for name in ("pydantic",)}
    sys.modules["pydantic"] = types.ModuleType("pydantic")
    _stand_in(
        "pydantic",
        BaseModel=_Model,
        ConfigDict=dict,
        Field=lambda **_: None,
        model_validator=lambda **_: lambda function: function,
    )
    plan: Any = importlib.import_module("sglang.srt.lora.dense.plan")
    for name, module in own.items():
        if module is None:
            del sys.modules[name]
        else:
            sys.modules[name] = module
    plan.load_plans = partial(_read_plans, plan, folder / _SGLANG / "configs")
    runner: Any = importlib.import_module("sglang.srt.lora.dense.runner")
    runner.load_plans = plan.load_plans
    return SimpleNamespace(
        plan=plan,
        runner=runner,
        workspace=importlib.import_module("sglang.srt.lora.workspace").LoraWorkspace,
    )


def _read_plans(plan: Any, folder: Path, architecture: str) -> SimpleNamespace:
    """Its table of tuned plans, the first row that fits wins, as its own reader gives it."""
    raw = json.loads((folder / f"{architecture}.plans.json").read_text(encoding="utf-8"))
    families = {"a_family": plan.AFamily, "b_family": plan.BFamily, "overlap": plan.Overlap}

    def row(entry: Mapping[str, Any]) -> SimpleNamespace:
        spec = {k: families[k](v) if k in families else v for k, v in entry["spec"].items()}
        kinds = entry.get("kinds")
        bounds = [f"{side}_{width}_features" for side in ("min", "max") for width in ("in", "out")]
        return SimpleNamespace(
            name=entry["name"],
            phase=_Phase(entry["phase"]) if "phase" in entry else None,
            kinds=None if kinds is None else [plan.DenseLoraKind(kind) for kind in kinds],
            spec=SimpleNamespace(**spec, model_dump=lambda: dict(spec)),
            **{name: entry.get(name) for name in ("max_tokens", "max_rank", *bounds)},
        )

    return SimpleNamespace(rows=[row(entry) for entry in raw["rows"]])


def _sglang_v2(folder: Path, problem: Problem) -> Launch:
    """The `triton_v2` backend with its tuned plan for the device. The base GEMM that some plans run
    beside the shrink is not there, so what they overlap with is nothing."""
    sglang = _load_sglang(folder)
    shape, device = problem.shape, problem.x.device
    runner = sglang.runner.DenseLoraRunner(
        sglang.workspace(), max_loras=shape.num_adapters, device=device
    )
    a, b = _sglang_slabs(problem)
    offsets = (0, *(sum(shape.widths[: g + 1]) for g in range(len(shape.widths))))
    runner.begin_batch(
        token_slots=problem.slots,
        lora_ranks=torch.tensor(shape.adapter_ranks, dtype=torch.int32).to(device),
        scalings=torch.ones(shape.num_adapters, device=device),
        num_tokens=shape.num_tokens,
        phase=_Phase.PREFILL if shape.num_tokens > 256 else _Phase.DECODE,
        graph_mode=False,
    )
    plan = runner.plan_for(
        sglang.plan.DenseLoraKind.LINEAR, max(shape.ranks), shape.num_in, offsets[-1],
        num_tokens=shape.num_tokens,
    )  # fmt: skip

    def launch() -> None:
        runner.apply(problem.x, lambda: problem.y, plan, a=a, b=b, offsets=offsets)

    # routes and workspaces, which it keeps, are made in the first call
    launch()
    problem.y.zero_()
    return launch


def _sglang_slabs(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """A `[adapters, sites * max rank, in]`, an adapter's sites packed at its own rank, and B
    `[adapters, out, max rank]`."""
    shape = problem.shape
    max_rank = max(shape.ranks)
    size = (shape.num_adapters, len(shape.widths) * max_rank, shape.num_in)
    a = problem.x.new_zeros(size)
    for i, rank in enumerate(shape.adapter_ranks):
        for g, parts in enumerate(problem.a):
            a[i, g * rank : (g + 1) * rank] = parts[i]
    _, b = problem.padded()
    return a, torch.cat([part.transpose(1, 2) for part in b], dim=1).contiguous()


def _sglang_triton(folder: Path, problem: Problem) -> Launch:
    """The `triton` backend, its segments by adapter."""
    _load_sglang(folder)
    root = "sglang.kernels.ops.lora.dense"
    shrink = importlib.import_module(f"{root}.sgemm_lora_a").sgemm_lora_a_fwd
    shape, device = problem.shape, problem.x.device
    a, b = _sglang_slabs(problem)
    order = torch.sort(problem.slots, stable=True).indices.to(torch.int32)
    counts = torch.bincount(problem.slots.long(), minlength=shape.num_adapters)
    used = sorted(set(problem.rows))
    lengths = counts[used].to(torch.int32)
    starts = torch.cumsum(lengths, 0).to(torch.int32) - lengths
    batch = SimpleNamespace(
        bs=len(used), num_segments=len(used), use_cuda_graph=True,
        seg_lens=lengths, seg_indptr=torch.cat((starts, starts[-1:] + lengths[-1:])),
        weight_indices=torch.tensor(used, dtype=torch.int32).to(device),
        lora_ranks=torch.tensor(shape.adapter_ranks, dtype=torch.int32).to(device),
        scalings=torch.ones(shape.num_adapters, device=device),
        max_len=int(lengths.max()), permutation=order,
    )  # fmt: skip
    num_sites, widest = len(shape.widths), max(shape.widths)
    if num_sites == 1:
        expand = importlib.import_module(f"{root}.sgemm_lora_b").sgemm_lora_b_fwd
        return lambda: expand(shrink(problem.x, a, batch), b, batch, problem.y)
    expand = importlib.import_module(f"{root}.qkv_lora_b").qkv_lora_b_fwd
    ends = [0, *(sum(shape.widths[: g + 1]) for g in range(num_sites))]
    offsets = torch.tensor(ends, dtype=torch.int32).to(device)
    return lambda: expand(
        shrink(problem.x, a, batch, num_sites), b, batch, offsets, widest, problem.y,
        n_slices=num_sites,
    )  # fmt: skip
