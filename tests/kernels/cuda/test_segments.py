"""Segments on the device against a sort in Python: popularities, ugly sizes, reuse of a buffer."""

from __future__ import annotations

import random

import pytest
import torch

from weft_kernels.cuda.segments import Segments, create_segments, fill_segments_
from weft_kernels.popularity import POPULARITIES, assign_adapters


def twin(
    slots: list[int], num_slots: int, block_rows: int
) -> tuple[list[int], list[int], list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """The sorted rows, the run of each place, the runs and the tiles."""
    keys = [s if 0 <= s < num_slots else num_slots for s in slots]
    rows = sorted(range(len(slots)), key=lambda row: keys[row])
    runs = []
    for slot in sorted(set(keys) - {num_slots}):
        start = sum(key < slot for key in keys)
        runs.append((slot, start, start + keys.count(slot)))
    tiles = [
        (slot, first, min(first + block_rows, end))
        for slot, start, end in runs
        for first in range(start, end, block_rows)
    ]
    of_place = [-1] * len(slots)
    for i, (_, start, end) in enumerate(runs):
        of_place[start:end] = [i] * (end - start)
    return rows, of_place, runs, tiles


def assert_right(segments: Segments, slots: list[int]) -> None:
    rows, of_place, runs, tiles = twin(slots, segments.num_slots, segments.block_rows)
    assert segments.rows_P.tolist() == rows
    assert segments.runs_P.tolist() == of_place
    for found_slots, starts, ends, want in (
        (segments.run_slots, segments.run_starts, segments.run_ends, runs),
        (segments.tile_slots, segments.tile_starts, segments.tile_ends, tiles),
    ):
        found = list(zip(found_slots.tolist(), starts.tolist(), ends.tolist(), strict=True))
        assert found[: len(want)] == want
        assert found_slots.tolist()[len(want) :] == [-1] * (len(found) - len(want))


@pytest.mark.parametrize("block_rows", [1, 16, 64])
@pytest.mark.parametrize("num_rows", [1, 7, 133])
@pytest.mark.parametrize("popularity", POPULARITIES)
def test_segments_are_the_twins(
    popularity: str, num_rows: int, block_rows: int, device: torch.device
) -> None:
    slots = assign_adapters(popularity, num_rows, 10, seed=0)
    slots[::5] = [-1] * len(slots[::5])
    on_device = torch.tensor(slots, dtype=torch.int32, device=device)
    assert_right(create_segments(on_device, 12, block_rows), slots)


@pytest.mark.parametrize("num_slots", [1, 2, 31, 64, 700])
def test_any_number_of_slots(num_slots: int, device: torch.device) -> None:
    slots = random.Random(num_slots).choices(range(-1, num_slots), k=150)
    on_device = torch.tensor(slots, dtype=torch.int32, device=device)
    assert_right(create_segments(on_device, num_slots, 16), slots)


def test_the_bounds_hold_the_most_tiles_that_rows_can_make(device: torch.device) -> None:
    # runs of one row more than a multiple of the tile need the most
    slots = [0] * 33 + [1] * 17 + [2] + [3]
    on_device = torch.tensor(slots, dtype=torch.int32, device=device)
    segments = create_segments(on_device, 4, 16)
    assert segments.max_tiles == 7
    assert segments.tile_slots.tolist() == [0, 0, 0, 1, 1, 2, 3]
    assert_right(segments, slots)


def test_nothing_stale_is_left_of_the_step_before(device: torch.device) -> None:
    full = list(range(20)) * 2
    segments = create_segments(torch.tensor(full, dtype=torch.int32, device=device), 20, 16)
    for slots in ([-1] * 40, [3] * 40, full, [-1, 5] * 20):
        fill_segments_(segments, torch.tensor(slots, dtype=torch.int32, device=device))
        assert_right(segments, slots)


def test_slots_that_do_not_exist_are_no_adapters(device: torch.device) -> None:
    slots = [4, 0, 99, -7, 3]
    on_device = torch.tensor(slots, dtype=torch.int32, device=device)
    segments = create_segments(on_device, 4, 16)
    assert_right(segments, slots)
    assert segments.run_slots.tolist() == [0, 3, -1, -1]


def test_an_empty_batch_has_no_segments(device: torch.device) -> None:
    segments = create_segments(torch.empty(0, dtype=torch.int32, device=device), 4, 16)
    assert segments.num_rows == segments.max_runs == segments.max_tiles == 0


def test_wrong_slots_are_refused(device: torch.device) -> None:
    segments = create_segments(torch.zeros(4, dtype=torch.int32, device=device), 4, 16)
    with pytest.raises(ValueError, match="for 4 rows, not 5"):
        fill_segments_(segments, torch.zeros(5, dtype=torch.int32, device=device))
    with pytest.raises(ValueError, match="int32"):
        fill_segments_(segments, torch.zeros(4, dtype=torch.int64, device=device))
    with pytest.raises(ValueError, match="0 slots"):
        create_segments(torch.zeros(4, dtype=torch.int32, device=device), 0, 16)
