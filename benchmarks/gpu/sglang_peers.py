"""SGLang's released LoRA kernels, from a folder: two of its backends on a problem of the benches.

The folder holds `sglang/kernels/ops/lora/` and `sglang/srt/lora/` of sglang 0.5.23.
"""

from __future__ import annotations

import enum
import importlib
import json
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from benchmarks.gpu.lora_problem import Problem
from benchmarks.gpu.peer_modules import ignore, refuse, shell, stand_in

from weft_kernels.cuda.configs import Launch

FOLDER = Path("sglang/srt/lora/dense")


def _is_sm90(*_: object) -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


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


def _load(folder: Path) -> SimpleNamespace:
    for name in (
        "sglang", "sglang.srt", "sglang.srt.lora", "sglang.srt.lora.dense", "sglang.kernels",
        "sglang.srt.utils", "sglang.kernels.ops", "sglang.kernels.ops.lora",
        "sglang.kernels.ops.lora.common", "sglang.kernels.ops.lora.dense",
        "sglang.kernels.ops.lora.moe", "sglang.kernels.ops.moe", "sglang.kernels.jit",
    ):  # fmt: skip
        shell(name, folder)
    stand_in("sglang.srt.environ", envs=_Settings())
    stand_in("sglang.srt.utils.common", direct_register_custom_op=ignore)
    stand_in("sglang.kernels.jit.utils", is_arch_support_pdl=_is_sm90)
    stand_in("sglang.kernels.ops.moe.moe_align", moe_align_block_size=refuse)
    stand_in(
        "sglang.srt.lora.utils",
        Phase=_Phase,
        LoRABatchInfo=SimpleNamespace,
        architecture_for_capability=lambda major: "sm90" if major == 9 else "default",
    )
    if "msgspec" not in sys.modules:
        stand_in("msgspec", Struct=_Struct)
    own = {name: sys.modules.get(name) for name in ("pydantic",)}
    sys.modules["pydantic"] = types.ModuleType("pydantic")
    stand_in(
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
    plan.load_plans = partial(_read_plans, plan, folder / FOLDER / "configs")
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


def triton_v2(folder: Path, problem: Problem) -> Launch:
    """The `triton_v2` backend with its tuned plan for the device. The base GEMM that some plans run
    beside the shrink is not there, so what they overlap with is nothing."""
    sglang = _load(folder)
    shape, device = problem.shape, problem.x.device
    runner = sglang.runner.DenseLoraRunner(
        sglang.workspace(), max_loras=shape.num_adapters, device=device
    )
    a, b = _slabs(problem)
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


def _slabs(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
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


def triton_segments(folder: Path, problem: Problem) -> Launch:
    """The `triton` backend, its segments by adapter."""
    _load(folder)
    root = "sglang.kernels.ops.lora.dense"
    shrink = importlib.import_module(f"{root}.sgemm_lora_a").sgemm_lora_a_fwd
    shape, device = problem.shape, problem.x.device
    a, b = _slabs(problem)
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
