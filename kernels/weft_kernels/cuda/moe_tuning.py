"""What the tuning command may try for the experts' kernels, and on which inputs: random tokens,
evenly routed, and for the adapters' kernels up to 32 adapters of rank 16 on every expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from weft_kernels.cuda import expert_mm
from weft_kernels.cuda.configs import Config, Launch, Shape, TuningSpace, listed_configs
from weft_kernels.cuda.expert_lora import MANY_TILE_ROWS, MAX_FEW_PAIRS
from weft_kernels.cuda.expert_lora_expand import expand_
from weft_kernels.cuda.expert_lora_shrink import shrink
from weft_kernels.cuda.pages import PAGE_ROWS, PageTable
from weft_kernels.cuda.pair_groups import TILE_ROWS, PairGroups, group_pairs
from weft_kernels.cuda.routing import route

_DTYPE = torch.bfloat16
_RANK = 16
_MAX_ADAPTERS = 32


@dataclass(frozen=True, slots=True)
class _Routed:
    weights_TK: Tensor
    experts_TK: Tensor
    groups: PairGroups
    tile_rows: int


def _num_experts(width: int) -> tuple[int, int]:
    """Experts and how many a token has: Mixtral's for its widths, else Qwen3-30B-A3B's."""
    return (8, 2) if width in (4096, 14336) else (128, 8)


def _route(num_pairs: int, experts: tuple[int, int], device: torch.device) -> _Routed:
    num_experts, top_k = experts
    num_tokens = max(1, num_pairs // top_k)
    logits = torch.randn(num_tokens, num_experts, device=device)
    weights_TK, experts_TK = route(logits, top_k, True)
    num_slots = min(num_tokens, _MAX_ADAPTERS)
    slots_T = torch.arange(num_tokens, device=device).remainder(num_slots).to(torch.int32)
    rows = MANY_TILE_ROWS if num_pairs > MAX_FEW_PAIRS else TILE_ROWS
    groups = group_pairs(experts_TK, num_experts, slots_T, num_slots, tile_rows=rows)
    return _Routed(weights_TK, experts_TK, groups, rows)


def _normal(*size: int, device: torch.device) -> Tensor:
    return torch.randn(size, device=device, dtype=_DTYPE).mul_(size[-2] ** -0.5)


def _create_gate_up(shape: Shape, device: torch.device) -> Callable[[Config], Launch]:
    hidden, width, experts = shape["hidden"], shape["width"], _num_experts(shape["width"])
    routed = _route(shape["pairs"], experts, device)
    x_TH = torch.randn(len(routed.experts_TK), hidden, device=device).to(_DTYPE)
    w_EHF = _normal(experts[0], hidden, 2 * width, device=device)
    act_PF = torch.empty(shape["pairs"], width, device=device, dtype=_DTYPE)

    def with_config(config: Config) -> Launch:
        return lambda: expert_mm.gate_up(x_TH, w_EHF, routed.groups, None, None, act_PF, config)

    return with_config


def _create_down(shape: Shape, device: torch.device) -> Callable[[Config], Launch]:
    hidden, width, experts = shape["hidden"], shape["width"], _num_experts(shape["width"])
    routed = _route(shape["pairs"], experts, device)
    num_tokens = len(routed.experts_TK)
    act_PF = torch.randn(shape["pairs"], width, device=device).to(_DTYPE)
    w_EFH = _normal(experts[0], width, hidden, device=device)
    planes_PH = torch.empty(shape["pairs"], hidden, device=device)
    y_TH = torch.empty(num_tokens, hidden, device=device, dtype=_DTYPE)

    def with_config(config: Config) -> Launch:
        blocks = triton.cdiv(hidden, config["BLOCK_N"])
        arrived_TN = torch.zeros(num_tokens, blocks, dtype=torch.int32, device=device)

        def launch() -> None:
            # what grouping does in a layer
            arrived_TN.zero_()
            expert_mm.down(
                act_PF, w_EFH, routed.weights_TK, routed.experts_TK, routed.groups, None, None,
                planes_PH, arrived_TN, y_TH, config,
            )  # fmt: skip

        return launch

    return with_config


def _create_table(routed: _Routed, num_in: int, num_out: int, device: torch.device) -> PageTable:
    """A table of one projection's sites, whose pages lie in any order."""
    num_slots = min(len(routed.experts_TK), _MAX_ADAPTERS)
    size, pages = (routed.groups.num_experts, num_slots), _RANK // PAGE_ROWS
    num_pages, page_size = size[0] * size[1] * pages, PAGE_ROWS * (num_in + num_out)
    a_offsets = torch.randperm(num_pages, device=device) * page_size
    return PageTable(
        memory=torch.randn(num_pages * page_size, device=device, dtype=_DTYPE),
        ranks=torch.full(size, _RANK, dtype=torch.int32, device=device),
        true_ranks=torch.full(size, _RANK, dtype=torch.int32, device=device),
        first_pages=torch.arange(0, num_pages, pages, device=device).to(torch.int32).view(size),
        a_offsets=a_offsets,
        b_offsets=a_offsets + PAGE_ROWS * num_in,
        scales=torch.ones(size, device=device),
        row_scales=None,
        biases=None,
        max_rank=_RANK,
    )


def _create_shrink(shape: Shape, device: torch.device) -> Callable[[Config], Launch]:
    routed = _route(shape["pairs"], _num_experts(shape["num_in"]), device)
    # B is not read
    table = _create_table(routed, shape["num_in"], PAGE_ROWS, device)
    x_PI = torch.randn(shape["pairs"], shape["num_in"], device=device).to(_DTYPE)
    h_SPR = torch.empty(1, shape["pairs"], _RANK, device=device)

    def with_config(config: Config) -> Launch:
        return lambda: shrink(
            x_PI, routed.groups, table, (0,),
            is_by_place=True, h_SPR=h_SPR, tile_rows=routed.tile_rows, config=config,
        )  # fmt: skip

    return with_config


def _create_expand(shape: Shape, device: torch.device) -> Callable[[Config], Launch]:
    routed = _route(shape["pairs"], _num_experts(shape["num_out"]), device)
    table = _create_table(routed, PAGE_ROWS, shape["num_out"], device)
    h_SPR = torch.randn(1, shape["pairs"], _RANK, device=device)
    y_PO = torch.zeros(shape["pairs"], shape["num_out"], device=device, dtype=_DTYPE)

    def with_config(config: Config) -> Launch:
        return lambda: expand_(
            y_PO, h_SPR, routed.groups, table, (0,), tile_rows=routed.tile_rows, config=config
        )

    return with_config


def _mm_candidates(_: Shape) -> list[Config]:
    return [
        {"BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": stages}
        for n, k in ((32, 128), (32, 256), (64, 64), (64, 128), (128, 64))
        for warps in (4, 8)
        for stages in (3, 4)
    ]


def _shrink_candidates(_: Shape) -> list[Config]:
    return [
        {"BLOCK_I": i, "BLOCK_I_MMA": 128, "SPLIT": split, "num_warps": warps, "num_stages": 3}
        for i, warps in ((256, 4), (512, 4), (512, 8), (1024, 8))
        for split in (1, 2, 4)
    ]


def _expand_candidates(_: Shape) -> list[Config]:
    return [
        {"BLOCK_O": o, "num_warps": warps, "num_stages": 2}
        for o, warps in ((64, 4), (128, 4), (128, 8), (256, 8))
    ]


def _space(
    operator: str,
    candidates: Callable[[Shape], list[Config]],
    create: Callable[[Shape, torch.device], Callable[[Config], Launch]],
) -> TuningSpace:
    return TuningSpace(
        operator, [shape for shape, _ in listed_configs(operator)], candidates, create
    )


TUNING = (
    _space("moe_gate_up", _mm_candidates, _create_gate_up),
    _space("moe_down", _mm_candidates, _create_down),
    _space("expert_lora_shrink", _shrink_candidates, _create_shrink),
    _space("expert_lora_expand", _expand_candidates, _create_expand),
)
