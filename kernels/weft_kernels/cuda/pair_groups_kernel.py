"""The device code of `pair_groups.py`: places, tiles and runs of few pairs by comparing each pair
with all others, in one launch.

Legend: P pairs; a program's BLOCK pairs against CHUNK others at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
def compare_kernel(
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
