"""What a step's rows use, sorted by slot on the device: built once per step, read by all layers.

    rows_T = the rows in the order of their slots, stable, those without an adapter last
    a run  = the neighbours in rows_T that share a slot
    a tile = at most `block_rows` neighbours of one run; a run of n rows has ceil(n / block_rows)

Legend: T rows, P their places in sorted order, R runs, N tiles. Everything is int32. One launch,
no host synchronisation, no atomics: every program counts all rows and places its own, so that the
result is the same in any order of programs. Slots below 0, or from `num_slots` on, mean no adapter.

R and N are bounds known to the host, R = min(T, num_slots) and N = R + (T - R) // block_rows: as
many as T rows can make. What is not in use has the slot -1, rewritten in every step, and programs
that find it return at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.configs import get_config

_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Segments:
    """rows_P `[T]`; runs_P `[T]`, the run of each place, -1 for rows without an adapter;
    run_slots, run_starts, run_ends `[R]` and tile_slots, tile_starts, tile_ends `[N]`, the slot,
    the first place and the place after the last."""

    rows_P: Tensor
    runs_P: Tensor
    run_slots: Tensor
    run_starts: Tensor
    run_ends: Tensor
    tile_slots: Tensor
    tile_starts: Tensor
    tile_ends: Tensor
    num_slots: int
    block_rows: int

    @property
    def num_rows(self) -> int:
        return self.rows_P.shape[0]

    @property
    def max_runs(self) -> int:
        return self.run_slots.shape[0]

    @property
    def max_tiles(self) -> int:
        return self.tile_slots.shape[0]


def tile_rows(num_rows: int) -> int:
    """The tile size for a batch of so many rows: 16, or more where there are prompts."""
    return get_config("segments", rows=num_rows)["TILE_ROWS"]


def create_segments(slots_T: Tensor, num_slots: int, block_rows: int | None = None) -> Segments:
    """Room for the segments of T rows, and `fill_segments_`; `tile_rows` to a tile if not told."""
    block_rows = tile_rows(slots_T.shape[0]) if block_rows is None else block_rows
    if num_slots < 1 or block_rows < 1:
        raise ValueError(f"{num_slots} slots and tiles of {block_rows} rows make no segments")
    num_rows = slots_T.shape[0]
    max_runs = min(num_rows, num_slots)
    max_tiles = max_runs + (num_rows - max_runs) // block_rows
    sizes = [num_rows] * 2 + [max_runs] * 3 + [max_tiles] * 3
    memory = torch.empty(sum(sizes), dtype=torch.int32, device=slots_T.device)
    rows, runs, *lists = torch.split(memory, sizes)
    segments = Segments(
        rows_P=rows, runs_P=runs,
        run_slots=lists[0], run_starts=lists[1], run_ends=lists[2],
        tile_slots=lists[3], tile_starts=lists[4], tile_ends=lists[5],
        num_slots=num_slots, block_rows=block_rows,
    )  # fmt: skip
    fill_segments_(segments, slots_T)
    return segments


def fill_segments_(segments: Segments, slots_T: Tensor) -> None:
    """Queue the building of the segments of `slots_T`, int32 `[T]`, in their place."""
    if slots_T.dtype != torch.int32 or slots_T.dim() != 1 or not slots_T.is_contiguous():
        raise ValueError(
            f"slots_T must be contiguous int32 [T], not {slots_T.dtype} {tuple(slots_T.shape)}"
        )
    if slots_T.shape[0] != segments.num_rows:
        raise ValueError(f"these segments are for {segments.num_rows} rows, not {len(slots_T)}")
    if segments.num_rows == 0:
        return
    _segments_kernel[(triton.cdiv(segments.num_rows, _BLOCK),)](
        slots_T, segments.rows_P, segments.runs_P,
        segments.run_slots, segments.run_starts, segments.run_ends,
        segments.tile_slots, segments.tile_starts, segments.tile_ends,
        segments.num_rows, segments.num_slots, segments.max_runs, segments.max_tiles,
        TILE_ROWS=segments.block_rows, BLOCK=_BLOCK,
        BLOCK_SLOTS=triton.next_power_of_2(segments.num_slots + 1),
        num_warps=4, num_stages=2,
    )  # fmt: skip


@triton.jit
def _segments_kernel(
    slots_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    runs_ptr: tl.tensor,
    run_slots_ptr: tl.tensor,
    run_starts_ptr: tl.tensor,
    run_ends_ptr: tl.tensor,
    tile_slots_ptr: tl.tensor,
    tile_starts_ptr: tl.tensor,
    tile_ends_ptr: tl.tensor,
    num_rows: tl.tensor,
    num_slots: tl.tensor,
    max_runs: tl.tensor,
    max_tiles: tl.tensor,
    TILE_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
) -> None:
    """Each program places BLOCK rows; rows without an adapter count as slot `num_slots`."""
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slots = tl.load(slots_ptr + own, mask=own < num_rows, other=-1)
    keys = tl.where((slots < 0) | (slots >= num_slots), num_slots, slots)

    counts = tl.zeros((BLOCK_SLOTS,), dtype=tl.int32)
    earlier = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, num_rows, BLOCK):
        others = start + tl.arange(0, BLOCK)
        other_slots = tl.load(slots_ptr + others, mask=others < num_rows, other=-1)
        other_keys = tl.where(
            (other_slots < 0) | (other_slots >= num_slots), num_slots, other_slots
        )
        counts += tl.histogram(other_keys, BLOCK_SLOTS, mask=others < num_rows)
        is_earlier = (other_keys[None, :] == keys[:, None]) & (others[None, :] < own[:, None])
        earlier += tl.sum(is_earlier.to(tl.int32), axis=1)

    live = tl.where(tl.arange(0, BLOCK_SLOTS) < num_slots, counts, 0)
    tiles = (live + TILE_ROWS - 1) // TILE_ROWS
    used = (live > 0).to(tl.int32)
    # where each slot's rows, tiles and run begin; the rows without an adapter come behind all slots
    first_places = tl.cumsum(counts, axis=0) - counts
    first_tiles = tl.cumsum(tiles, axis=0) - tiles
    first_runs = tl.cumsum(used, axis=0) - used

    is_row = own < num_rows
    has_adapter = is_row & (keys < num_slots)
    first_place = tl.gather(first_places, keys, 0)
    place = first_place + earlier
    end = first_place + tl.gather(counts, keys, 0)
    run = tl.gather(first_runs, keys, 0)
    tl.store(rows_ptr + place, own, mask=is_row)
    tl.store(runs_ptr + place, tl.where(has_adapter, run, -1), mask=is_row)
    is_run = has_adapter & (earlier == 0)
    tl.store(run_slots_ptr + run, slots, mask=is_run)
    tl.store(run_starts_ptr + run, place, mask=is_run)
    tl.store(run_ends_ptr + run, end, mask=is_run)
    is_tile = has_adapter & (earlier % TILE_ROWS == 0)
    tile = tl.gather(first_tiles, keys, 0) + earlier // TILE_ROWS
    tl.store(tile_slots_ptr + tile, slots, mask=is_tile)
    tl.store(tile_starts_ptr + tile, place, mask=is_tile)
    tl.store(tile_ends_ptr + tile, tl.minimum(place + TILE_ROWS, end), mask=is_tile)
    # there are no more runs and tiles than rows, so all that are not in use are covered
    tl.store(run_slots_ptr + own, -1, mask=(own >= tl.sum(used)) & (own < max_runs))
    tl.store(tile_slots_ptr + own, -1, mask=(own >= tl.sum(tiles)) & (own < max_tiles))


def aot_variants() -> list[AotVariant]:
    """Decode and prefill tiles, few and many slots."""
    pointers = [
        "slots_ptr", "rows_ptr", "runs_ptr", "run_slots_ptr", "run_starts_ptr", "run_ends_ptr",
        "tile_slots_ptr", "tile_starts_ptr", "tile_ends_ptr",
    ]  # fmt: skip
    counts = ["num_rows", "num_slots", "max_runs", "max_tiles"]
    return [
        AotVariant(
            name=f"segments/rows{tile_rows}-slots{num_slots}",
            kernel=_segments_kernel,
            signature=dict.fromkeys(pointers, "*i32") | dict.fromkeys(counts, "i32"),
            constants={
                "TILE_ROWS": tile_rows,
                "BLOCK": _BLOCK,
                "BLOCK_SLOTS": triton.next_power_of_2(num_slots + 1),
            },
            divisible_by_16=["slots_ptr", "rows_ptr"],
            num_warps=4,
            num_stages=2,
            needs_vector_loads=False,  # a few KiB of int32, one element a thread
        )
        for tile_rows in (16, 64)
        for num_slots in (64, 1024)
    ]
