"""(token, expert) pairs in order, and cut into what a program of the experts' kernels takes.

    pairs sorted by (expert, slot of the token's adapter), equal ones in the order of the tokens

Up to `MAX_COMPARED_PAIRS` one kernel counts, for each pair, those that come before it
(`pair_groups_kernel.py`); more are sorted by torch. Null pairs, of null experts and of rows that
are no tokens, come last.

Legend: T tokens, K experts per token, E experts, P = T K pairs, pair t K + k is token t's k-th;
L tiles. Indices are int32, -1 = none. Nothing waits for the device, and no result depends on the
order in which programs run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.pair_groups_kernel import compare_kernel

# up to here a pair's place is found by comparing it with all others: one launch, where a sort takes
# several; the work grows with the square
MAX_COMPARED_PAIRS = 4096
# a GEMM tile of the decode kernels has the rows of the smallest tensor-core tile
TILE_ROWS = 16
# pairs of one (expert, slot) from here on share a tensor-core tile; fewer are a GEMV each
FEW_PAIRS = 4
_BLOCK = 16
_CHUNK = 256
_FIELDS = 4


@dataclass(frozen=True, slots=True)
class PairGroups:
    """Pairs sorted by (expert, slot); null pairs come last.

    pair_P: the pair at each place; slot_P: its token's slot, -1 for none; place_P: each pair's
    place; ends_E: where each expert's pairs end. tiles_L4 (expert, first, end, 0): up to
    `tile_rows` places of one expert, -1 for expert where an entry is empty. runs_L4 (expert, first,
    end, slot): places of one expert and slot, those without a slot left out; None without slots.
    """

    num_experts: int
    top_k: int
    pair_P: Tensor
    slot_P: Tensor
    place_P: Tensor
    ends_E: Tensor
    tiles_L4: Tensor
    runs_L4: Tensor | None


def group_pairs(
    experts_TK: Tensor,
    num_experts: int,
    slots_T: Tensor | None = None,
    num_slots: int = 0,
    *,
    tile_rows: int = TILE_ROWS,
    arrived: Tensor | None = None,
) -> PairGroups:
    """Sort the pairs of `route`. slots_T int32 `[T]`: each token's slot; what is not in
    0 .. num_slots - 1 is none.

    arrived: int32 counters of any shape, set to zero in passing.
    """
    if experts_TK.dtype != torch.int32 or not experts_TK.is_contiguous():
        raise ValueError("experts must be contiguous int32 [T, K], as `route` gives them")
    num_rows, top_k = experts_TK.shape
    if slots_T is not None:
        if slots_T.shape != (num_rows,) or slots_T.dtype != torch.int32:
            raise ValueError(f"slots must be int32 [{num_rows}], one for each token")
        if (num_experts + 1) * (num_slots + 1) >= 2**31:
            raise ValueError(f"{num_experts} experts and {num_slots} slots are too many to sort by")
    if num_rows * top_k > MAX_COMPARED_PAIRS:
        if arrived is not None:
            arrived.zero_()
        return _sort(experts_TK, num_experts, slots_T, num_slots, tile_rows)
    return _compare(experts_TK, num_experts, slots_T, num_slots, tile_rows, arrived)


def max_tiles(num_pairs: int, num_groups: int, tile_rows: int) -> int:
    """Entries of a list of tiles: no group has more than its pairs, nor all together more than one
    broken tile each."""
    return min(num_pairs, num_groups + num_pairs // tile_rows)


def _compare(
    experts_TK: Tensor,
    num_experts: int,
    slots_T: Tensor | None,
    num_slots: int,
    tile_rows: int,
    arrived: Tensor | None,
) -> PairGroups:
    num_pairs, device = experts_TK.numel(), experts_TK.device
    num_tiles = max_tiles(num_pairs, num_experts, tile_rows)
    pair_P, slot_P, place_P = torch.empty(3, num_pairs, dtype=torch.int32, device=device)
    ends_E = torch.empty(num_experts, dtype=torch.int32, device=device)
    tiles_L4 = torch.empty(num_tiles, _FIELDS, dtype=torch.int32, device=device)
    runs_L4 = None
    if slots_T is not None:
        runs_L4 = torch.empty(num_pairs, _FIELDS, dtype=torch.int32, device=device)
    num_counters = 0 if arrived is None else arrived.numel()
    pair_programs = triton.cdiv(num_pairs, _BLOCK)
    expert_programs = triton.cdiv(num_experts + 1, _BLOCK)
    grid = (pair_programs + expert_programs + triton.cdiv(num_counters, _BLOCK * _CHUNK),)
    if num_pairs:
        compare_kernel[grid](
            experts_TK, slots_T, pair_P, slot_P, place_P, ends_E, tiles_L4, runs_L4, arrived,
            num_pairs, num_experts, num_slots, num_tiles, num_counters,
            pair_programs, expert_programs,
            TOP_K=experts_TK.shape[1], TILE_ROWS=tile_rows, FEW_PAIRS=FEW_PAIRS,
            IS_BY_PLACE=num_tiles == num_pairs, BLOCK=_BLOCK, CHUNK=_CHUNK,
            num_warps=4, num_stages=1,
        )  # fmt: skip
    else:
        ends_E.zero_()
    return PairGroups(
        num_experts, experts_TK.shape[1], pair_P, slot_P, place_P, ends_E, tiles_L4, runs_L4
    )


def _sort(
    experts_TK: Tensor,
    num_experts: int,
    slots_T: Tensor | None,
    num_slots: int,
    tile_rows: int,
) -> PairGroups:
    """The same by a sort, for many pairs. Runs are cut into tiles whatever their length: of so many
    pairs few have a slot and an expert to themselves."""
    num_rows, top_k = experts_TK.shape
    expert_P = experts_TK.clamp(max=num_experts).view(-1)
    slots_P = expert_P.new_full(expert_P.shape, -1)
    if slots_T is not None:
        slots_P = slots_T.repeat_interleave(top_k, output_size=num_rows * top_k)
        is_slot_P = (slots_P >= 0) & (slots_P < num_slots) & (expert_P < num_experts)
        slots_P = torch.where(is_slot_P, slots_P, -1)
    stride = num_slots + 1
    key_P, order_P = torch.sort(expert_P * stride + slots_P + 1, stable=True)
    pair_P = order_P.to(torch.int32)
    place_P = torch.empty_like(pair_P)
    place_P[order_P] = torch.arange(len(pair_P), dtype=torch.int32, device=pair_P.device)
    bounds_E = torch.arange(1, num_experts + 1, dtype=torch.int32, device=key_P.device) * stride
    ends_E = torch.searchsorted(key_P, bounds_E, out_int32=True)
    runs_L4 = None
    sorted_expert_P, slot_P = key_P // stride, key_P % stride - 1
    if slots_T is not None:
        runs = max_tiles(len(key_P), num_experts * num_slots, tile_rows)
        is_run_P = (slot_P >= 0) & (sorted_expert_P < num_experts)
        runs_L4 = _cut(key_P, is_run_P, sorted_expert_P, slot_P, tile_rows, runs)
    tiles_L4 = _cut(
        sorted_expert_P, sorted_expert_P < num_experts, sorted_expert_P,
        torch.zeros_like(slot_P), tile_rows, max_tiles(len(key_P), num_experts, tile_rows),
    )  # fmt: skip
    return PairGroups(
        num_experts, top_k, pair_P, slot_P.to(torch.int32), place_P, ends_E, tiles_L4, runs_L4
    )


def _cut(
    key_P: Tensor, is_listed_P: Tensor, expert_P: Tensor, slot_P: Tensor, rows: int, num_tiles: int
) -> Tensor:
    """The listed groups of equal keys in tiles, side by side from entry 0 on, then empty ones."""
    place_P = torch.arange(len(key_P), dtype=torch.int32, device=key_P.device)
    first_P = torch.searchsorted(key_P, key_P, out_int32=True)
    end_P = torch.searchsorted(key_P, key_P, right=True, out_int32=True)
    is_first_P = is_listed_P & ((place_P - first_P) % rows == 0)
    # what starts no tile goes to one entry too many, which is dropped
    entry_P = torch.where(is_first_P, is_first_P.cumsum(0) - 1, num_tiles)
    fields_P4 = torch.stack((expert_P, place_P, end_P.minimum(place_P + rows), slot_P), dim=1)
    tiles_L4 = torch.full((num_tiles + 1, 4), -1, dtype=torch.int32, device=key_P.device)
    tiles_L4[entry_P] = fields_P4.to(torch.int32)
    return tiles_L4[:num_tiles]


def aot_variants() -> list[AotVariant]:
    """The pairs of Qwen3-30B-A3B and Mixtral, with slots, listed by place and by expert."""
    pointers = [name for name in compare_kernel.arg_names if name.endswith("_ptr")]
    counts = ["num_pairs", "num_experts", "num_slots", "num_tiles", "num_counters",
              "pair_programs", "expert_programs"]  # fmt: skip
    return [
        AotVariant(
            name=f"moe_group/e{num_experts}-k{top_k}-{'places' if is_by_place else 'experts'}",
            kernel=compare_kernel,
            signature=dict.fromkeys(pointers, "*i32") | dict.fromkeys(counts, "i32"),
            constants={
                "TOP_K": top_k, "TILE_ROWS": TILE_ROWS, "FEW_PAIRS": FEW_PAIRS,
                "IS_BY_PLACE": is_by_place, "BLOCK": _BLOCK, "CHUNK": _CHUNK,
            },
            divisible_by_16=pointers,
            num_warps=4,
            num_stages=1,
            needs_vector_loads=False,  # a few kilobytes that all programs read
        )
        for num_experts, top_k in ((128, 8), (8, 2))
        for is_by_place in (True, False)
    ]  # fmt: skip
