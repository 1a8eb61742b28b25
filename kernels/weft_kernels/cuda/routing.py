"""Routing on the device: the top experts of each token, and (token, expert) pairs in order.

    w[t, k], e[t, k] = the k-th largest of softmax(logits[t]) and where it is
    pairs sorted by (expert, slot of the token's adapter), equal ones in the order of the tokens

Of equal logits the lower expert comes first, as in the twin; `torch.topk` promises no order. With
`renormalize` a token's weights sum to one (`norm_topk_prob`, Mixtral). Router columns from
`num_experts` on are *null experts* (AdaMoE): they take a place and a weight and run nothing. A row
that is no token (the padding of a graph's batch) has only null pairs.

Legend: T tokens, K experts per token, E experts, P = T K pairs, pair t K + k is token t's k-th;
L tiles. Indices are int32, -1 = none. Nothing waits for the device, and no result depends on the
order in which programs run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant

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


def route(
    logits_TE: Tensor, top_k: int, renormalize: bool, num_tokens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights float32 `[T, K]` and experts int32 `[T, K]`, best first.

    logits_TE: `[T, E]`, null experts included, any float dtype. num_tokens: int32 `[1]`; rows from
    there on are no tokens: their weights are 0 and their experts E, which no router column is.
    """
    if logits_TE.dim() != 2 or logits_TE.stride(1) != 1:
        raise ValueError("logits must be [T, E] with unit stride along E")
    num_rows, num_columns = logits_TE.shape
    if not 1 <= top_k <= num_columns:
        raise ValueError(f"top_k must be 1 to {num_columns}, the router's columns, not {top_k}")
    weights_TK = torch.empty(num_rows, top_k, dtype=torch.float32, device=logits_TE.device)
    experts_TK = torch.empty(num_rows, top_k, dtype=torch.int32, device=logits_TE.device)
    if num_rows:
        _route_kernel[(num_rows,)](
            logits_TE, weights_TK, experts_TK, num_tokens, num_columns, logits_TE.stride(0),
            TOP_K=top_k, RENORMALIZE=renormalize, BLOCK_E=triton.next_power_of_2(num_columns),
            BLOCK_K=triton.next_power_of_2(top_k), num_warps=1, num_stages=1,
        )  # fmt: skip
    return weights_TK, experts_TK


@triton.jit
def _route_kernel(
    logits_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    experts_ptr: tl.tensor,
    num_tokens_ptr: tl.tensor,
    num_columns: tl.tensor,
    logits_stride: tl.tensor,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """A program takes one token."""
    t = tl.program_id(0).to(tl.int64)
    column_E = tl.arange(0, BLOCK_E)
    is_column_E = column_E < num_columns
    logit_E = tl.load(logits_ptr + t * logits_stride + column_E, mask=is_column_E, other=0.0)
    logit_E = tl.where(is_column_E, logit_E.to(tl.float32), float("-inf"))
    # whatever is not a number or masked out ranks below all others and above what was taken: a
    # token never has an expert twice
    least = -3.0e38
    rank_E = tl.where(logit_E > least, logit_E, least)
    rank_E = tl.where(is_column_E, rank_E, float("-inf"))
    top = tl.max(rank_E, axis=0)
    k_K = tl.arange(0, BLOCK_K)
    weight_K = tl.zeros([BLOCK_K], tl.float32)
    expert_K = tl.zeros([BLOCK_K], tl.int32)
    for k in tl.static_range(TOP_K):
        best = tl.argmax(rank_E, axis=0)
        logit = tl.sum(tl.where(column_E == best, logit_E, 0.0), axis=0)
        weight_K = tl.where(k_K == k, tl.exp(logit - top), weight_K)
        expert_K = tl.where(k_K == k, best, expert_K)
        rank_E = tl.where(column_E == best, float("-inf"), rank_E)
    total = tl.sum(weight_K if RENORMALIZE else tl.exp(logit_E - top), axis=0)
    weight_K = weight_K / total
    if num_tokens_ptr is not None:
        is_token = t < tl.load(num_tokens_ptr)
        weight_K = tl.where(is_token, weight_K, 0.0)
        expert_K = tl.where(is_token, expert_K, num_columns)
    at_K = t * TOP_K + k_K
    tl.store(weights_ptr + at_K, weight_K, mask=k_K < TOP_K)
    tl.store(experts_ptr + at_K, expert_K, mask=k_K < TOP_K)


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
        _compare_kernel[grid](
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


@triton.jit
def _keys(
    experts_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    pair: tl.tensor,
    num_pairs: tl.tensor,
    num_experts: tl.tensor,
    num_slots: tl.tensor,
    TOP_K: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """(expert, all null ones as one; slot; what to sort by) of pairs; past the last, above all."""
    mask = pair < num_pairs
    expert = tl.load(experts_ptr + pair, mask=mask, other=0)
    expert = tl.where(mask, tl.minimum(expert, num_experts), num_experts + 1)
    if slots_ptr is None:
        return expert, tl.full(expert.shape, -1, tl.int32), expert
    slot = tl.load(slots_ptr + pair // TOP_K, mask=mask & (expert < num_experts), other=-1)
    slot = tl.where((slot >= 0) & (slot < num_slots), slot, -1)
    return expert, slot, expert * (num_slots + 1) + slot + 1


@triton.jit
def _store_entries(
    list_ptr: tl.tensor,
    index: tl.tensor,
    expert: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    slot: tl.tensor,
    mask: tl.tensor,
) -> None:
    entry_ptr = list_ptr + index * 4
    tl.store(entry_ptr, expert, mask=mask)
    tl.store(entry_ptr + 1, first, mask=mask)
    tl.store(entry_ptr + 2, end, mask=mask)
    tl.store(entry_ptr + 3, slot, mask=mask)


@triton.jit
def _compare_kernel(
    experts_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    pair_ptr: tl.tensor,
    slot_ptr: tl.tensor,
    place_ptr: tl.tensor,
    ends_ptr: tl.tensor,
    tiles_ptr: tl.tensor,
    runs_ptr: tl.tensor,
    arrived_ptr: tl.tensor,
    num_pairs: tl.tensor,
    num_experts: tl.tensor,
    num_slots: tl.tensor,
    num_tiles: tl.tensor,
    num_counters: tl.tensor,
    pair_programs: tl.tensor,
    expert_programs: tl.tensor,
    TOP_K: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    FEW_PAIRS: tl.constexpr,
    IS_BY_PLACE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """A program takes BLOCK pairs, or BLOCK experts, or counters to set to zero.

    Tile j of expert e is entry `e + first(e) / TILE_ROWS + j` of the list: entries of different
    experts never meet, and at most one entry of an expert stays empty. Where there are fewer pairs
    than such entries, a tile's entry is its first place (IS_BY_PLACE).
    """
    pid = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    if pid < pair_programs:
        pair = pid * BLOCK + lane
        expert, slot, key = _keys(
            experts_ptr, slots_ptr, pair, num_pairs, num_experts, num_slots, TOP_K
        )
        place = tl.zeros([BLOCK], tl.int32)
        expert_first = tl.zeros([BLOCK], tl.int32)
        expert_count = tl.zeros([BLOCK], tl.int32)
        run_first = tl.zeros([BLOCK], tl.int32)
        run_count = tl.zeros([BLOCK], tl.int32)
        for start in range(0, num_pairs, CHUNK):
            other = start + tl.arange(0, CHUNK)
            other_expert, _, other_key = _keys(
                experts_ptr, slots_ptr, other, num_pairs, num_experts, num_slots, TOP_K
            )
            is_less = other_key[None, :] < key[:, None]
            is_equal = other_key[None, :] == key[:, None]
            is_before = is_less | (is_equal & (other[None, :] < pair[:, None]))
            place += tl.sum(is_before.to(tl.int32), axis=1)
            run_first += tl.sum(is_less.to(tl.int32), axis=1)
            run_count += tl.sum(is_equal.to(tl.int32), axis=1)
            expert_first += tl.sum((other_expert[None, :] < expert[:, None]).to(tl.int32), axis=1)
            expert_count += tl.sum((other_expert[None, :] == expert[:, None]).to(tl.int32), axis=1)
        mask = pair < num_pairs
        tl.store(pair_ptr + place, pair, mask=mask)
        tl.store(slot_ptr + place, slot, mask=mask)
        tl.store(place_ptr + pair, place, mask=mask)
        in_expert = place - expert_first
        is_first = (in_expert % TILE_ROWS == 0) & (expert < num_experts)
        end = tl.minimum(place + TILE_ROWS, expert_first + expert_count)
        nothing = tl.zeros([BLOCK], tl.int32)
        if IS_BY_PLACE:
            listed = tl.where(is_first, expert, -1)
            _store_entries(tiles_ptr, place, listed, place, end, nothing, mask)
        else:
            entry = expert + expert_first // TILE_ROWS + in_expert // TILE_ROWS
            _store_entries(tiles_ptr, entry, expert, place, end, nothing, mask & is_first)
        if runs_ptr is not None:
            is_few = run_count < FEW_PAIRS
            is_first = (slot >= 0) & (is_few | ((place - run_first) % TILE_ROWS == 0))
            end = tl.minimum(place + TILE_ROWS, run_first + run_count)
            end = tl.where(is_few, place + 1, end)
            listed = tl.where(is_first, expert, -1)
            _store_entries(runs_ptr, place, listed, place, end, slot, mask)
    elif pid < pair_programs + expert_programs:
        expert = (pid - pair_programs) * BLOCK + lane
        first = tl.zeros([BLOCK], tl.int32)
        count = tl.zeros([BLOCK], tl.int32)
        for start in range(0, num_pairs, CHUNK):
            other = start + tl.arange(0, CHUNK)
            other_expert, _, _ = _keys(
                experts_ptr, slots_ptr, other, num_pairs, num_experts, num_slots, TOP_K
            )
            first += tl.sum((other_expert[None, :] < expert[:, None]).to(tl.int32), axis=1)
            count += tl.sum((other_expert[None, :] == expert[:, None]).to(tl.int32), axis=1)
        end = first + count
        tl.store(ends_ptr + expert, end, mask=expert < num_experts)
        if not IS_BY_PLACE:
            # null pairs own the entries behind the last expert's, and use none
            is_null = expert == num_experts
            used = tl.where(is_null, 0, (count + TILE_ROWS - 1) // TILE_ROWS)
            entry = expert + first // TILE_ROWS + used
            last = tl.where(is_null, num_tiles, expert + 1 + end // TILE_ROWS)
            last = tl.where(expert <= num_experts, last, 0)
            most = tl.max(last - entry, axis=0)
            for i in range(0, most):
                tl.store(tiles_ptr + (entry + i) * 4, -1, mask=entry + i < last)
    else:
        counter = (pid - pair_programs - expert_programs) * (BLOCK * CHUNK)
        counter += tl.arange(0, BLOCK * CHUNK)
        tl.store(arrived_ptr + counter, 0, mask=counter < num_counters)


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
    """The routers of Qwen3-30B-A3B and Mixtral, and their pairs with and without slots."""
    variants = []
    for num_experts, top_k in ((128, 8), (8, 2)):
        variants.append(
            AotVariant(
                name=f"moe_route/e{num_experts}-k{top_k}",
                kernel=_route_kernel,
                signature={
                    "logits_ptr": "*bf16", "weights_ptr": "*fp32", "experts_ptr": "*i32",
                    "num_tokens_ptr": "*i32", "num_columns": "i32", "logits_stride": "i32",
                },
                constants={
                    "TOP_K": top_k, "RENORMALIZE": True, "BLOCK_E": num_experts, "BLOCK_K": top_k,
                },
                divisible_by_16=["logits_ptr", "weights_ptr", "experts_ptr"],
                num_warps=1,
                num_stages=1,
                needs_vector_loads=False,  # a router's row is 2 to 8 bytes a lane
            )
        )  # fmt: skip
        for is_by_place in (True, False):
            variants.append(_compare_variant(num_experts, top_k, is_by_place))
    return variants


def _compare_variant(num_experts: int, top_k: int, is_by_place: bool) -> AotVariant:
    pointers = [name for name in _compare_kernel.arg_names if name.endswith("_ptr")]
    counts = ["num_pairs", "num_experts", "num_slots", "num_tiles", "num_counters",
              "pair_programs", "expert_programs"]  # fmt: skip
    return AotVariant(
        name=f"moe_group/e{num_experts}-k{top_k}-{'places' if is_by_place else 'experts'}",
        kernel=_compare_kernel,
        signature=dict.fromkeys(pointers, "*i32") | dict.fromkeys(counts, "i32"),
        constants={
            "TOP_K": top_k, "TILE_ROWS": TILE_ROWS, "FEW_PAIRS": FEW_PAIRS,
            "IS_BY_PLACE": is_by_place, "BLOCK": _BLOCK, "CHUNK": _CHUNK,
        },
        divisible_by_16=pointers,
        num_warps=4,
        num_stages=1,
        needs_vector_loads=False,  # a few kilobytes that all programs read
    )  # fmt: skip
