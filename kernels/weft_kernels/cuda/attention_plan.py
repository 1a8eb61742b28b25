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

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weft_kernels.cuda.attention_tiles import (
    ITEM_FIELDS,
    MERGE_FIELDS,
    Ints,
    Tiling,
    create_blank_tiles,
    create_tiles,
    split_tiles,
)
from weft_kernels.cuda.configs import Config, get_config

Span = tuple[int, int, int]


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
        tables: Sequence[Sequence[int]],
        num_rows: int | None = None,
        limits: AttentionLimits | None = None,
    ) -> tuple[Ints, AttentionLimits]:
        """The step's packed tensor, on the host, and what limits it keeps.

        spans[i] = (first batch row, chunk length, context length with the chunk); tables[i] =
        blocks, more than needed do no harm; an `array` of int32 costs a copy, a list the conversion
        of each number. Rows from the last request's to `num_rows` are padding: attention makes them
        zeros. With `limits` (those of a captured graph) the lists are filled
        up with work of no queries, and what comes back may be shorter than `num_ints` by the
        entries that the tables do not use; without, everything has the size that it needs.
        """
        columns = np.array(spans, dtype=np.int32).reshape(-1, 3)
        flat, starts = self._flatten_tables(columns, tables)
        num_live = int((columns[:, 0] + columns[:, 1]).max(initial=0))
        num_padding = max(0, (num_live if num_rows is None else num_rows) - num_live)
        is_short = columns[:, 1] <= self._num_queries(self.decode)
        requests = [(columns, starts), (columns[:0], starts[:0])]
        if not is_short.all():
            requests = [(columns[own], starts[own]) for own in (is_short, ~is_short)]
        parts: list[tuple[Ints, Ints]] = []
        for window in self.windows:
            for tiling, own in zip((self.decode, self.prefill), requests, strict=True):
                tiles = create_tiles(*own, window, self._num_queries(tiling))
                items, merges = split_tiles(tiles, tiling, self._num_splits(tiling))
                if tiling is self.decode and num_padding:
                    blanks = create_blank_tiles(num_live, num_padding, self._num_queries(tiling))
                    items = np.concatenate((items, blanks))
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

    def _flatten_tables(self, columns: Ints, tables: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
        """All blocks in use, one table after another, and where each starts."""
        needed = -(-columns[:, 2] // self.block_size)
        sizes = np.fromiter(map(len, tables), np.int32, len(tables))
        if len(sizes) != len(columns):
            raise ValueError(f"{len(sizes)} block tables for {len(columns)} requests")
        bad = (columns[:, 1] < 1) | (columns[:, 1] > columns[:, 2])
        if bad.any():
            _, num_new, total = columns[bad][0]
            raise ValueError(f"a chunk of {num_new} tokens in a context of {total}")
        bad = sizes < needed
        if bad.any():
            size, total = sizes[bad][0], columns[bad][0, 2]
            raise ValueError(f"{size} blocks do not hold a context of {total} tokens")
        flat = array("i")
        for blocks, count in zip(tables, needed.tolist(), strict=True):
            flat.extend(blocks[:count])
        return np.array(flat), np.cumsum(needed, dtype=np.int32) - needed

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
    tables: Sequence[Sequence[int]],
    device: torch.device,
    num_rows: int | None = None,
) -> AttentionMetadata:
    """A step's metadata in tensors of its own, outside CUDA graphs: one copy to the device."""
    packed, limits = planner.pack(spans, tables, num_rows)
    return planner.view(torch.from_numpy(packed).to(device), limits)
