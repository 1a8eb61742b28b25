"""vLLM's released kernels of expert adapters, from a folder: what adapters add to a layer.

The folder holds `vllm/lora/ops/triton_ops/` of vllm 0.33.0. Its route, which a compiled extension
of theirs builds, is built here before the clock runs. Nothing of them is in this repository.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from benchmarks.gpu.peer_modules import load_vllm, stand_in
from torch import Tensor

from weft_kernels.cuda.configs import Launch

_FILE = Path("vllm/lora/ops/triton_ops/fused_moe_lora_op.py")
# the smallest tile that they take, the best for few tokens
_BLOCK_M = 16
# their rule for going without a route, in `tokens * top_k * 8 <= experts * slots`
_SPARSITY = 8


@dataclass(frozen=True, slots=True)
class VllmProblem:
    """x_TH; weights_TK, experts_TK and slots_T of a step; A `[S, E, R, in]` and B `[S, E, out, R]`
    of gate, up and down; act_PF: down's input by pair."""

    x_TH: Tensor
    act_PF: Tensor
    weights_TK: Tensor
    experts_TK: Tensor
    slots_T: Tensor
    a: Sequence[Tensor]
    b: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class VllmOutputs:
    """gate_up_TKF `[T, K, 2 F]` and down_TKH `[T, K, H]`, which each launch adds to."""

    gate_up_TKF: Tensor
    down_TKH: Tensor


def is_in(folder: Path) -> bool:
    """Whether the folder holds them."""
    return (folder / _FILE).is_file()


def create_launch(folder: Path, problem: VllmProblem) -> tuple[Launch, VllmOutputs]:
    fused = _load(folder)
    num_slots, num_experts, rank, _ = problem.a[0].shape
    num_tokens, top_k = problem.experts_TK.shape
    is_naive = num_tokens * top_k * _SPARSITY <= num_experts * num_slots
    route = _naive_route(problem) if is_naive else _sorted_route(problem, num_slots, num_experts)
    device = problem.x_TH.device
    widths = (sum(b.shape[2] for b in problem.b[:2]), problem.b[2].shape[2])
    outputs = VllmOutputs(
        *(
            torch.zeros(num_tokens, top_k, w, dtype=problem.x_TH.dtype, device=device)
            for w in widths
        )
    )
    lora_ids = torch.full((num_slots + 1,), -1, dtype=torch.int32, device=device)
    slots = problem.slots_T.tolist()
    active = torch.tensor(sorted({s for s in slots if s >= 0}), dtype=torch.int32, device=device)
    lora_ids[: len(active)] = active
    blocks: dict[str, Any] = {
        f"{stage}_{key}": value
        for stage in ("shrink", "expand")
        for key, value in (
            ("block_size_m", _BLOCK_M), ("block_size_n", 64), ("block_size_k", 32),
            ("group_size_m", 8), ("num_warps", 4), ("num_stages", 3), ("split_k", 1),
        )
    }  # fmt: skip
    common = {
        "topk_weights": problem.weights_TK,
        "token_lora_mapping": problem.slots_T,
        "max_lora_rank": rank,
        "top_k_num": top_k,
        "lora_ids": lora_ids,
        "num_active_loras": torch.tensor([len(active)], dtype=torch.int32),
        "adapter_enabled": torch.ones(num_slots + 1, dtype=torch.int32, device=device),
    }

    def launch() -> None:
        fused(
            output=outputs.gate_up_TKF, qcurr_hidden_states=problem.x_TH,
            lora_a_stacked=list(problem.a[:2]), lora_b_stacked=list(problem.b[:2]),
            **route, **common, **blocks,
        )  # fmt: skip
        fused(
            output=outputs.down_TKH, qcurr_hidden_states=problem.act_PF,
            lora_a_stacked=[problem.a[2]], lora_b_stacked=[problem.b[2]],
            mul_routed_weight=True, **route, **common, **blocks,
        )  # fmt: skip

    # its tables of pointers are copied to the device in the first call, which no graph may hold
    launch()
    outputs.gate_up_TKF.zero_()
    outputs.down_TKH.zero_()
    return launch, outputs


def _load(folder: Path) -> Any:
    load_vllm(folder)
    is_cuda = torch.cuda.is_available()
    stand_in(
        "vllm.distributed",
        tensor_model_parallel_all_gather=None,
        tensor_model_parallel_all_reduce=None,
    )
    stand_in("vllm.triton_utils.allocation", set_triton_allocator=lambda device: None)
    stand_in(
        "vllm.utils.mem_utils",
        get_max_shared_memory_bytes=lambda index: (
            torch.cuda.get_device_properties(index).shared_memory_per_block_optin  # type: ignore[attr-defined]
        ),
    )
    module = importlib.import_module("vllm.lora.ops.triton_ops.fused_moe_lora_op")
    if not is_cuda:
        # interpreted: what they ask of the device only decides the size of their grid
        platform = SimpleNamespace(
            num_compute_units=lambda index: 132, is_xpu=lambda: False, is_cuda_alike=lambda: False
        )
        vars(module)["current_platform"] = platform
    # a pointer of memory that was freed may come again with other tensors
    vars(module)["_LORA_PTR_DICT"].clear()
    return module._fused_moe_lora


def _naive_route(problem: VllmProblem) -> dict[str, Tensor | None]:
    return {
        "sorted_token_ids": None,
        "expert_ids": problem.experts_TK.flatten().to(torch.int32),
        "num_tokens_post_padded": None,
    }


def _sorted_route(
    problem: VllmProblem, num_slots: int, num_experts: int
) -> dict[str, Tensor | None]:
    """For each slot its pairs by expert, each expert's padded to whole tiles with the number of all
    pairs, which is none's."""
    num_tokens, top_k = problem.experts_TK.shape
    num_pairs = num_tokens * top_k
    experts = problem.experts_TK.cpu().flatten().tolist()
    slots = problem.slots_T.cpu().repeat_interleave(top_k).tolist()
    most = (num_pairs + num_experts * (_BLOCK_M - 1)) // _BLOCK_M + 1
    ids = torch.full((num_slots, most * _BLOCK_M), num_pairs, dtype=torch.int32)
    tiles = torch.full((num_slots, most), -1, dtype=torch.int32)
    padded = torch.zeros(num_slots, dtype=torch.int32)
    by_unit: dict[tuple[int, int], list[int]] = {}
    for pair, unit in enumerate(zip(slots, experts, strict=True)):
        by_unit.setdefault(unit, []).append(pair)
    for (slot, expert), pairs in sorted(by_unit.items()):
        if slot < 0:
            continue
        first, num_tiles = int(padded[slot]), -(-len(pairs) // _BLOCK_M)
        ids[slot, first : first + len(pairs)] = torch.tensor(pairs, dtype=torch.int32)
        tiles[slot, first // _BLOCK_M : first // _BLOCK_M + num_tiles] = expert
        padded[slot] += num_tiles * _BLOCK_M
    device = problem.x_TH.device
    return {
        "sorted_token_ids": ids.to(device),
        "expert_ids": tiles.to(device),
        "num_tokens_post_padded": padded.to(device),
    }
