"""How the queries of a step's attention are cut into tiles, and tiles into items that run side by
side (see `attention_plan`, which also says what the fields of an item and of a merge are).

A step that decodes has a tile for each request and mostly an item for each tile, so both functions
take a short way where nothing is cut: this runs on the host, before each step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
ITEM_FIELDS, MERGE_FIELDS = 8, 4


@dataclass(frozen=True, slots=True)
class Tiling:
    """How one form of the kernel cuts its work.

    block_m: (query, query head) rows of a tile; block_l: keys that it takes at a time; split_len:
    tiles with fewer keys than twice this stay whole; num_programs: how many fill the device.
    """

    block_m: int
    block_l: int
    split_len: int
    num_programs: int
    num_warps: int
    num_stages: int


def create_tiles(columns: Ints, table_starts: Ints, window: int | None, num_queries: int) -> Ints:
    """Items `[number of tiles, 8]` of up to `num_queries` queries that hold all their keys.

    columns: `[requests, 3]`, the first batch row, the chunk's length, and the context's with it;
    table_starts: `[requests]`, where each one's blocks start.
    """
    if len(columns) == 0:
        return np.zeros((0, ITEM_FIELDS), dtype=np.int32)
    first, num_new, total = columns.T
    query: Ints | int = 0
    if num_new.max() > num_queries:
        counts = -(-num_new // num_queries)
        req = np.repeat(np.arange(len(columns)), counts)
        query = _places(counts) * num_queries
        first, num_new, total = columns[req].T
        table_starts = table_starts[req]
    tiles = np.zeros((len(first), ITEM_FIELDS), dtype=np.int32)
    tiles[:, 0] = table_starts
    tiles[:, 1] = first + query
    tiles[:, 2] = np.minimum(num_queries, num_new - query)
    tiles[:, 3] = total - num_new + query
    if window is not None:
        tiles[:, 4] = np.maximum(0, tiles[:, 3] - window + 1)
    tiles[:, 5] = tiles[:, 3] + tiles[:, 2]
    tiles[:, 6] = -1
    return tiles


def split_tiles(tiles: Ints, tiling: Tiling, num_splits: int) -> tuple[Ints, Ints]:
    """Items, longest first, so that a long one does not start last, and merges `[J, 4]`.

    num_splits: the items that fill the device.
    """
    merges = np.zeros((0, MERGE_FIELDS), dtype=np.int32)
    if len(tiles) == 0:
        return tiles, merges
    num_keys = tiles[:, 5] - tiles[:, 4]
    # a tile gets splits for its share of the keys, so that all together fill the device once
    share = max(int(num_keys.sum()) / num_splits, tiling.split_len)
    items = tiles
    if num_keys.max() >= 2 * share:
        items, merges = _cut(tiles, num_keys, share, tiling.block_l)
    return items[np.argsort(items[:, 4] - items[:, 5], kind="stable")], merges


def _cut(tiles: Ints, num_keys: Ints, share: float, block_l: int) -> tuple[Ints, Ints]:
    """Each tile in pieces of about `share` keys and like length, in whole steps of `block_l`."""
    counts = np.maximum(num_keys // share, 1)
    steps = -(-num_keys // block_l)
    each = (-(-steps // counts)).astype(np.int32) * block_l
    counts = -(-num_keys // each)
    tile, place = np.repeat(np.arange(len(tiles)), counts), _places(counts)
    items = tiles[tile]
    items[:, 4] += place * each[tile]
    items[:, 5] = np.minimum(items[:, 4] + each[tile], items[:, 5])
    is_part, is_cut = counts[tile] > 1, counts > 1
    items[is_part, 6] = np.arange(is_part.sum())
    merges = np.zeros((int(is_cut.sum()), MERGE_FIELDS), dtype=np.int32)
    merges[:, 0] = items[is_part & (place == 0), 6]
    merges[:, 1] = counts[is_cut]
    merges[:, 2:] = tiles[is_cut, 1:3]
    return items, merges


def _places(counts: Ints) -> Ints:
    """0 .. count - 1 for each count, one after another."""
    ends = np.cumsum(counts, dtype=np.int32)
    return np.arange(ends[-1], dtype=np.int32) - np.repeat(ends - counts, counts)


def create_blank_tiles(first: int, count: int, num_queries: int) -> Ints:
    """Items without keys for `count` rows of padding: they write zeros."""
    tiles = np.zeros((-(-count // num_queries), ITEM_FIELDS), dtype=np.int32)
    offset = np.arange(len(tiles)) * num_queries
    tiles[:, 1] = first + offset
    tiles[:, 2] = np.minimum(num_queries, count - offset)
    tiles[:, 6] = -1
    return tiles
