"""What paged attention does in a step, worked out on the host: tiles, splits and their merges.

A *tile* is up to `block_m // G` neighbouring queries of one request with all G query heads of one
KV head, so that they share its keys: those from the first query's window to the last query. Tiles
with many keys are cut into *splits*, an *item* each, that run side by side; a *merge* names the
splits of one tile. Requests with chunks that one decode tile holds go to the decode form, longer
chunks to the prefill form; a mixed step has both. The host knows all lengths before a step runs,
so kernels get finished lists, sorted by length, and search nothing.

Everything goes to the device as one int32 tensor:

    [ for each window and form: items [I, 8] | merges [J, 4] ][ tables ]

    item:  where its request's blocks start in tables, first batch row, number of queries (0:
           nothing to do), position of the first query, first key, key after the last, partial
           result (-1: write the output), 0
    merge: first partial result, number of them (0: nothing to do), first batch row, number of
           queries

Under a CUDA graph `AttentionLimits` fixes the sizes I and J, and with them the grids.

Legend: T rows, N KV heads, G query heads per KV head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft_kernels.cuda.configs import Config, get_config

Ints = NDArray[np.int32]
Span = tuple[int, int, int]
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


@dataclass(frozen=True, slots=True)
class FormLimits:
    """The most items, merges and partial results of a form in a step, for each window."""

    num_items: int
    num_merges: int
    num_partials: int

    @property
    def num_ints(self) -> int:
        return self.num_items * ITEM_FIELDS + self.num_merges * MERGE_FIELDS


@dataclass(frozen=True, slots=True)
class AttentionLimits:
    """The most that a step may need, and so where each part lies in the packed tensor."""

    decode: FormLimits
    prefill: FormLimits
    num_table_entries: int


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """One form's work in the layers of one window: items int32 `[I, 8]`, merges int32 `[J, 4]`."""

    tiling: Tiling
    items: Tensor
    merges: Tensor
    num_partials: int


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """A step's work on the device, by window, decode form first; tables: int32, all requests'
    block tables one after another."""

    num_kv_heads: int
    groups: int
    block_size: int
    tables: Tensor
    work: Mapping[int | None, tuple[AttentionWork, AttentionWork]]


@dataclass(frozen=True, slots=True)
class AttentionPlanner:
    """Plans steps for layers of one shape; windows: the distinct ones, None for layers without."""

    num_kv_heads: int
    groups: int
    block_size: int
    decode: Tiling
    prefill: Tiling
    windows: tuple[int | None, ...] = (None,)

    def __post_init__(self) -> None:
        for tiling in (self.decode, self.prefill):
            if tiling.block_m < self.groups:
                raise ValueError(
                    f"a tile of {tiling.block_m} rows does not hold the {self.groups} query heads "
                    "of a KV head"
                )
        if any(window is not None and window < 1 for window in self.windows):
            raise ValueError("a window is at least 1: a token sees itself")

    def limits(
        self, num_rows: int, num_seqs: int, max_context: int, *, has_prefill: bool
    ) -> AttentionLimits:
        """What any step of up to `num_rows` rows, padding included, and `num_seqs` requests of up
        to `max_context` tokens may need; without prefill all chunks must be short enough to decode.
        """
        prefill_tiles = min(num_rows, num_rows // self._num_queries(self.prefill) + num_seqs)
        return AttentionLimits(
            decode=self._form_limits(self.decode, num_rows),
            prefill=self._form_limits(self.prefill, prefill_tiles if has_prefill else 0),
            num_table_entries=num_seqs * -(-max_context // self.block_size),
        )

    def num_ints(self, limits: AttentionLimits) -> int:
        """The length of the packed tensor."""
        return self._tables_start(limits) + limits.num_table_entries

    def pack(
        self,
        spans: Sequence[Span],
        tables: Sequence[Sequence[int] | Ints],
        num_rows: int | None = None,
        limits: AttentionLimits | None = None,
    ) -> tuple[Ints, AttentionLimits]:
        """The step's packed tensor, on the host, and what limits it keeps.

        spans[i] = (first batch row, chunk length, context length with the chunk); tables[i] =
        blocks, more than needed do no harm. Rows from the last request's to `num_rows` are padding:
        attention makes them zeros. With `limits` (those of a captured graph) the lists are filled
        up with work of no queries, and what comes back may be shorter than `num_ints` by the
        entries that the tables do not use; without, everything has the size that it needs.
        """
        flat, starts = self._flatten_tables(spans, tables)
        columns = np.array(spans, dtype=np.int32).reshape(-1, 3)
        num_live = int((columns[:, 0] + columns[:, 1]).max(initial=0))
        num_padding = max(0, (num_live if num_rows is None else num_rows) - num_live)
        is_short = columns[:, 1] <= self._num_queries(self.decode)
        parts: list[tuple[Ints, Ints]] = []
        for window in self.windows:
            for tiling, chosen in ((self.decode, is_short), (self.prefill, ~is_short)):
                tiles = self._create_tiles(columns[chosen], starts[chosen], window, tiling)
                items, merges = self._split(tiles, tiling)
                if tiling is self.decode:
                    items = np.concatenate((items, self._blank_items(num_live, num_padding)))
                parts.append((items, merges))
        if limits is None:
            decode, prefill = (_needed(parts[form::2]) for form in (0, 1))
            limits = AttentionLimits(decode, prefill, len(flat))
        return self._fill(parts, flat, limits), limits

    def view(self, packed: Tensor, limits: AttentionLimits) -> AttentionMetadata:
        """The parts of a packed tensor on the device; nothing is copied."""
        work, at = {}, 0
        for window in self.windows:
            forms = []
            for tiling, form in ((self.decode, limits.decode), (self.prefill, limits.prefill)):
                middle = at + form.num_items * ITEM_FIELDS
                items = packed[at:middle].view(form.num_items, ITEM_FIELDS)
                at += form.num_ints
                merges = packed[middle:at].view(form.num_merges, MERGE_FIELDS)
                forms.append(AttentionWork(tiling, items, merges, form.num_partials))
            work[window] = (forms[0], forms[1])
        return AttentionMetadata(self.num_kv_heads, self.groups, self.block_size, packed[at:], work)

    def _num_queries(self, tiling: Tiling) -> int:
        return tiling.block_m // self.groups

    def _num_splits(self, tiling: Tiling) -> int:
        """The items, of one KV head, that fill the device; splits outnumber tiles by fewer."""
        return -(-tiling.num_programs // self.num_kv_heads)

    def _form_limits(self, tiling: Tiling, num_tiles: int) -> FormLimits:
        if num_tiles == 0:
            return FormLimits(0, 0, 0)
        # tiles in several splits have no more than fill the device, two at least each
        num_splits = self._num_splits(tiling)
        return FormLimits(num_tiles + num_splits, num_splits // 2, num_splits)

    def _tables_start(self, limits: AttentionLimits) -> int:
        return len(self.windows) * (limits.decode.num_ints + limits.prefill.num_ints)

    def _flatten_tables(
        self, spans: Sequence[Span], tables: Sequence[Sequence[int] | Ints]
    ) -> tuple[Ints, Ints]:
        needed = [-(-total // self.block_size) for _, _, total in spans]
        for (_, num_new, total), blocks, count in zip(spans, tables, needed, strict=True):
            if not 1 <= num_new <= total:
                raise ValueError(f"a chunk of {num_new} tokens in a context of {total}")
            if len(blocks) < count:
                raise ValueError(f"{len(blocks)} blocks do not hold a context of {total} tokens")
        # rows that are arrays already cost a copy, lists a conversion of each number
        used = [
            np.asarray(blocks[:count], dtype=np.int32)
            for blocks, count in zip(tables, needed, strict=True)
        ]
        flat = np.concatenate(used) if used else np.zeros(0, dtype=np.int32)
        starts = np.concatenate(([0], np.cumsum(needed[:-1], dtype=np.int32)))
        return flat, starts[: len(spans)].astype(np.int32)

    def _create_tiles(
        self, columns: Ints, table_starts: Ints, window: int | None, tiling: Tiling
    ) -> Ints:
        """Items `[number of tiles, 8]` that hold all keys of a tile each."""
        num_queries = self._num_queries(tiling)
        counts = -(-columns[:, 1] // num_queries)
        req = np.repeat(np.arange(len(columns)), counts)
        first, num_new, total = columns[req].T
        query = (np.arange(len(req)) - np.repeat(np.cumsum(counts) - counts, counts)) * num_queries
        tiles = np.zeros((len(req), ITEM_FIELDS), dtype=np.int32)
        tiles[:, 0] = table_starts[req]
        tiles[:, 1] = first + query
        tiles[:, 2] = np.minimum(num_queries, num_new - query)
        tiles[:, 3] = total - num_new + query
        tiles[:, 4] = 0 if window is None else np.maximum(0, tiles[:, 3] - window + 1)
        tiles[:, 5] = tiles[:, 3] + tiles[:, 2]
        tiles[:, 6] = -1
        return tiles

    def _split(self, tiles: Ints, tiling: Tiling) -> tuple[Ints, Ints]:
        """Cut tiles into items, longest first, so that a long one does not start last."""
        num_keys = tiles[:, 5] - tiles[:, 4]
        # a tile gets splits for its share of the keys, so that all together fill the device once
        share = int(num_keys.sum()) / self._num_splits(tiling)
        counts = np.maximum(num_keys // max(share, tiling.split_len), 1)
        # splits of like length, in whole steps of the kernel's loop
        steps = -(-num_keys // tiling.block_l)
        each = (-(-steps // counts)).astype(np.int32) * tiling.block_l
        counts = -(-num_keys // each)
        tile = np.repeat(np.arange(len(tiles)), counts)
        place = np.arange(len(tile)) - np.repeat(np.cumsum(counts) - counts, counts)
        items = tiles[tile]
        items[:, 4] += place * each[tile]
        items[:, 5] = np.minimum(items[:, 4] + each[tile], items[:, 5])
        is_part = counts[tile] > 1
        items[is_part, 6] = np.arange(is_part.sum())
        merges = np.zeros((int((counts > 1).sum()), MERGE_FIELDS), dtype=np.int32)
        merges[:, 0] = items[is_part & (place == 0), 6]
        merges[:, 1] = counts[counts > 1]
        merges[:, 2:] = tiles[counts > 1, 1:3]
        return items[np.argsort(items[:, 4] - items[:, 5], kind="stable")], merges

    def _blank_items(self, first: int, count: int) -> Ints:
        """Items without keys for `count` rows of padding: they write zeros."""
        num_queries = self._num_queries(self.decode)
        items = np.zeros((-(-count // num_queries), ITEM_FIELDS), dtype=np.int32)
        offset = np.arange(len(items)) * num_queries
        items[:, 1] = first + offset
        items[:, 2] = np.minimum(num_queries, count - offset)
        items[:, 6] = -1
        return items

    def _fill(
        self, parts: Sequence[tuple[Ints, Ints]], flat: Ints, limits: AttentionLimits
    ) -> Ints:
        start = self._tables_start(limits)
        if len(flat) > limits.num_table_entries:
            raise ValueError(
                f"the step's tables have {len(flat)} blocks, more than {limits.num_table_entries}"
            )
        packed = np.zeros(start + len(flat), dtype=np.int32)
        packed[start:] = flat
        at = 0
        for k, (items, merges) in enumerate(parts):
            form = limits.prefill if k % 2 else limits.decode
            needed = _needed([(items, merges)])
            if needed.num_items > form.num_items or needed.num_partials > form.num_partials:
                kind = "prefill" if k % 2 else "decode"
                raise ValueError(f"{kind} of the step needs {needed}, more than {form}")
            packed[at : at + items.size] = items.ravel()
            middle = at + form.num_items * ITEM_FIELDS
            packed[middle : middle + merges.size] = merges.ravel()
            at += form.num_ints
        return packed


def _needed(parts: Sequence[tuple[Ints, Ints]]) -> FormLimits:
    """What holds the items and merges of each part."""
    return FormLimits(
        num_items=max(len(items) for items, _ in parts),
        num_merges=max(len(merges) for _, merges in parts),
        num_partials=max(int(merges[:, 1].sum()) for _, merges in parts),
    )


def tiling_of(config: Config, groups: int) -> Tiling:
    return Tiling(
        # what is listed for fewer groups may be too small for these
        block_m=max(config["BLOCK_M"], 1 << (groups - 1).bit_length()),
        block_l=config["BLOCK_L"],
        split_len=config["SPLIT_LEN"],
        num_programs=config["NUM_PROGRAMS"],
        num_warps=config["num_warps"],
        num_stages=config["num_stages"],
    )


def get_tiling(form: str, groups: int, head_dim: int, kv_bytes: int) -> Tiling:
    """The configured tiling of a form, "decode" or "prefill"; kv_bytes: of a cache's element."""
    config = get_config(f"attention_{form}", groups=groups, head_dim=head_dim, kv_bytes=kv_bytes)
    return tiling_of(config, groups)


def create_attention_planner(
    num_kv_heads: int,
    groups: int,
    head_dim: int,
    kv_dtype: torch.dtype,
    windows: Sequence[int | None] = (None,),
    block_size: int = 16,
) -> AttentionPlanner:
    """With the configured tilings; kv_dtype: the dtype of the caches' data."""
    decode, prefill = (
        get_tiling(form, groups, head_dim, kv_dtype.itemsize) for form in ("decode", "prefill")
    )
    return AttentionPlanner(num_kv_heads, groups, block_size, decode, prefill, tuple(windows))


def create_attention_metadata(
    planner: AttentionPlanner,
    spans: Sequence[Span],
    tables: Sequence[Sequence[int] | Ints],
    device: torch.device,
    num_rows: int | None = None,
) -> AttentionMetadata:
    """A step's metadata in tensors of its own, outside CUDA graphs: one copy to the device."""
    packed, limits = planner.pack(spans, tables, num_rows)
    return planner.view(torch.from_numpy(packed).to(device), limits)
