"""Who is in which slot of a page table: the host's side, which alone writes the table.

It knows offsets in the pool, not digests or tenants; who sits in which slot is the caller's
business. A change is queued on the current stream, and nothing waits for the device: steps that
were queued before it read the old table, later ones the new one. The pages of an adapter that left
must not be reused before the change is queued.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weft_kernels.cuda.page_columns import (
    FIRST_PAGE,
    NUM_ROWS,
    RANK,
    SCALE,
    TRUE_RANK,
    AdapterPages,
    ColumnForm,
    PageColumn,
)
from weft_kernels.cuda.pages import ABSENT, PAGE_ROWS, PageTable, check_page_table

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_ALIGNMENT_BYTES = 16  # of each tensor of the table: what kernels are compiled for


@dataclass(slots=True)
class SlotPages:
    """Writes a page table. Made by `create_page_table`; `table` has views of what is written:
    rows int32 `[4, S, slots]`, entries int64 `[2, E]` and vectors int64 `[V, S, slots]`."""

    table: PageTable
    form: ColumnForm
    _rows: Tensor
    _entries: Tensor
    _vectors: Tensor
    _slots: list[PageColumn | None]
    _staging: Tensor = field(init=False)
    _first_entries: list[int] = field(init=False)

    def __post_init__(self) -> None:
        num_sites, num_slots = self._rows.shape[1:]
        self._first_entries = [0] * num_slots
        # the most pages of one adapter
        most = min(self._entries.shape[1], num_sites * (self.form.max_rank // PAGE_ROWS))
        self._staging = torch.empty(
            self.form.num_ints(num_sites, most), dtype=torch.int32, device=self.table.memory.device
        )

    def get(self, slot: int) -> PageColumn | None:
        """What sits in a slot."""
        return self._slots[slot]

    def set(self, slot: int, column: PageColumn | None) -> None:
        """Put an adapter into a slot, or nobody: the slot's whole column is rewritten.

        ValueError, and nothing changed, for an adapter that was prepared for another table, or for
        whose pages there are no entries left.
        """
        if not 0 <= slot < len(self._slots):
            raise ValueError(f"slot {slot} is not one of the table's {len(self._slots)}")
        if column is not None and column.form is not self.form:
            raise ValueError("the adapter was prepared for another page table")
        num_entries = 0 if column is None else column.num_entries
        first = self._try_find_entries(slot, num_entries)
        if first is None:
            others = sum(own.num_entries for _, own in self._others(slot))
            if others + num_entries > self._entries.shape[1]:
                raise ValueError(
                    f"{num_entries} pages beside {others} of other slots are more than the "
                    f"table's {self._entries.shape[1]} entries"
                )
            first = self._compact(slot)
        self._slots[slot], self._first_entries[slot] = column, first
        self._write(slot)

    def _others(self, slot: int) -> list[tuple[int, PageColumn]]:
        return [(s, c) for s, c in enumerate(self._slots) if s != slot and c is not None]

    def _try_find_entries(self, slot: int, num_entries: int) -> int | None:
        """The first gap between the other slots' entries that is wide enough."""
        start = 0
        for first, size in sorted(
            (self._first_entries[s], column.num_entries)
            for s, column in self._others(slot)
            if column.num_entries
        ):
            if first - start >= num_entries:
                return start
            start = first + size
        return start if self._entries.shape[1] - start >= num_entries else None

    def _compact(self, slot: int) -> int:
        """Move all other slots' entries to the front; the first entry behind them."""
        start = 0
        for other, column in self._others(slot):
            self._first_entries[other] = start
            start += column.num_entries
            self._write(other)
        return start

    def _write(self, slot: int) -> None:
        """Queue the slot's column and entries on the current stream."""
        column, first = self._slots[slot], self._first_entries[slot]
        self._rows[:, :, slot] = 0
        self._vectors[:, :, slot] = ABSENT
        if column is None:
            return
        staged = self._staging[: len(column.packed)]
        staged.copy_(column.packed, non_blocking=True)
        sites, vectors, offsets, rows = self.form.split(
            staged, column.num_sites, column.num_entries
        )
        rows[FIRST_PAGE] += first
        self._rows[:, :, slot].index_copy_(1, sites, rows)
        if len(vectors):
            self._vectors[:, :, slot].index_copy_(1, sites, vectors)
        if column.num_entries:
            entries = self._entries[:, first : first + column.num_entries]
            entries.copy_(offsets)
            if offsets.dtype == torch.int32:
                entries.mul_(PAGE_ROWS)

    def check(self) -> None:
        """ValueError when the table on the device is not what the host wrote, or is malformed.

        Copies the whole table to the host: for tests and integrity checks, not for steps.
        """
        check_page_table(self.table, self.form.shapes)
        found_rows, found_vectors = self._rows.cpu(), self._vectors.cpu()
        found_entries = self._entries.cpu()
        for slot, column in enumerate(self._slots):
            want_rows = torch.zeros_like(found_rows[:, :, slot])
            want_vectors = torch.full_like(found_vectors[:, :, slot], ABSENT)
            if column is not None:
                first = self._first_entries[slot]
                sites, vectors, offsets, rows = column.parts
                want_rows.index_copy_(1, sites, rows)
                want_rows[FIRST_PAGE, sites] += first
                want_vectors.index_copy_(1, sites, vectors)
                unit = PAGE_ROWS if offsets.dtype == torch.int32 else 1
                entries = found_entries[:, first : first + column.num_entries]
                if not torch.equal(entries, offsets.to(torch.int64) * unit):
                    raise ValueError(f"slot {slot} has other pages than it was given")
            if not torch.equal(found_rows[:, :, slot], want_rows):
                raise ValueError(f"slot {slot} has other ranks or scales than it was given")
            if not torch.equal(found_vectors[:, :, slot], want_vectors):
                raise ValueError(f"slot {slot} has other [out] vectors than it was given")


def create_page_table(
    memory: Tensor,
    shapes: Sequence[tuple[int, int]],
    slots: Sequence[AdapterPages | None],
    *,
    max_rank: int,
    num_entries: int | None = None,
    has_row_scales: bool = False,
    has_biases: bool = False,
) -> SlotPages:
    """A table for the sites of `shapes` (in, out) and as many slots as `slots`, filled with them.

    memory: the pool, flat. num_entries: page-list entries, by default as many as the pool can hold
    pages of the narrowest site.
    """
    if memory.dim() != 1 or memory.dtype not in _FLOATS or not memory.is_contiguous():
        raise ValueError("the pool must be a flat, contiguous float32, float16 or bfloat16 tensor")
    if not shapes or not slots or max_rank < 1:
        raise ValueError("a page table needs a site, a slot and a max_rank of 1 or more")
    if num_entries is None:
        num_entries = max(1, memory.numel() // (PAGE_ROWS * min(sum(shape) for shape in shapes)))
    form = ColumnForm(
        tuple(shapes), memory.numel(), -(-max_rank // PAGE_ROWS) * PAGE_ROWS,
        has_row_scales, has_biases, is_pinned=memory.device.type == "cuda",
    )  # fmt: skip
    size, device = (len(shapes), len(slots)), memory.device
    rows = _aligned(NUM_ROWS, size, torch.int32, device)
    entries = _aligned(2, (num_entries,), torch.int64, device)
    vectors = _aligned(form.num_vectors, size, torch.int64, device).fill_(ABSENT)
    table = PageTable(
        memory=memory,
        ranks=rows[RANK],
        true_ranks=rows[TRUE_RANK],
        first_pages=rows[FIRST_PAGE],
        a_offsets=entries[0],
        b_offsets=entries[1],
        scales=rows[SCALE].view(torch.float32),
        row_scales=vectors[0] if has_row_scales else None,
        biases=vectors[-1] if has_biases else None,
        max_rank=form.max_rank,
    )
    pages = SlotPages(table, form, rows, entries, vectors, [None] * len(slots))
    for slot, adapter in enumerate(slots):
        if adapter is not None:
            pages.set(slot, form.prepare(adapter))
    return pages


def _aligned(count: int, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros `[count, *size]`, each of the `count` tensors contiguous and aligned."""
    num_elements = math.prod(size)
    step = _ALIGNMENT_BYTES // dtype.itemsize
    padded = torch.zeros(count, -(-num_elements // step) * step, dtype=dtype, device=device)
    return padded[:, :num_elements].view(count, *size)
