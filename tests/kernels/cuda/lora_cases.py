"""Random adapted linears in a pool that is as hostile as it may be, and their twin.

Whatever no kernel may use is NaN: gaps between pages, rows of tail pages past the true rank,
other slots' pages, and every output before it is written.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weft_kernels.cuda.lora_sites import SiteGroup, create_site_group
from weft_kernels.cuda.page_columns import SitePages
from weft_kernels.cuda.pages import PAGE_ROWS
from weft_kernels.cuda.slot_pages import SlotPages, create_page_table
from weft_kernels.reference import Lora
from weft_kernels.reference import adapted_linear as twin

BASE_ONLY = -1
# sites before and behind those of the group, so that a wrong site index meets NaN
FIRST_SITE = 2
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}


@dataclass(frozen=True)
class Case:
    """A fused linear of some widths; `adapters[slot][k]` at the site of slice k; the slot of each
    row."""

    x: Tensor
    w: Tensor
    bias: Tensor | None
    widths: tuple[int, ...]
    adapters: list[list[Lora | None]]
    rows: list[int]
    num_empty_slots: int = 2
    seed: int = 0
    _nan: float = field(default=float("nan"))

    @property
    def has_row_scales(self) -> bool:
        return any(s and s.row_scale_O is not None for a in self.adapters for s in a)

    @property
    def has_biases(self) -> bool:
        return any(s and s.bias_O is not None for a in self.adapters for s in a)

    def twin(self) -> Tensor:
        nothing: list[Lora | None] = [None] * len(self.widths)
        loras = [self.adapters[a] if 0 <= a < len(self.adapters) else nothing for a in self.rows]
        return twin(self.x, self.w, self.bias, self.widths, loras)

    def base(self, device: torch.device) -> Tensor:
        """W x + bias, as torch's GEMM gives it."""
        y = self.x.double() @ self.w.double()
        y = y if self.bias is None else y + self.bias.double()
        return y.to(self.x.dtype).to(device)

    def slots(self, device: torch.device) -> Tensor:
        return torch.tensor(self.rows, dtype=torch.int32, device=device)

    def group(self, device: torch.device) -> SiteGroup:
        sites = [FIRST_SITE + k for k in range(len(self.widths))]
        return create_site_group(sites, self.x.shape[1], self.widths, device)

    def pages(self, device: torch.device, *, max_rank: int = 256) -> SlotPages:
        """A table over a pool whose pages lie one by one in random order with gaps of NaN."""
        shapes = [(self.x.shape[1], width) for width in self.widths]
        pool = Pool(self.x.dtype, random.Random(self.seed))
        adapters = [
            {
                FIRST_SITE + k: pool.add(lora, *shapes[k])
                for k, lora in enumerate(adapter)
                if lora is not None
            }
            for adapter in self.adapters
        ]
        pages = create_page_table(
            pool.memory().to(device),
            [(8, 8)] * FIRST_SITE + shapes + [(8, 8)],
            [*adapters, *[None] * self.num_empty_slots],
            max_rank=max_rank,
            has_row_scales=self.has_row_scales,
            has_biases=self.has_biases,
        )
        # freed entries lead to NaN
        columns = [pages.get(slot) for slot in range(len(adapters))]
        num_used = sum(column.num_entries for column in columns if column is not None)
        for offsets in (pages.table.a_offsets, pages.table.b_offsets):
            offsets[num_used:] = 0
        return pages


class Pool:
    """Element ranges given out one page at a time; what is not given out is NaN."""

    def __init__(self, dtype: torch.dtype, rng: random.Random) -> None:
        self._dtype, self._rng = dtype, rng
        # kernels read offset 0 where a mask is wrong
        self._parts: list[Tensor] = [self._nan(4096)]
        self._size = 4096

    def _nan(self, size: int) -> Tensor:
        return torch.full((size,), float("nan"), dtype=self._dtype)

    def _put(self, part: Tensor) -> int:
        """The offset, a multiple of 8, at which `part` lies behind a random gap."""
        gap = PAGE_ROWS * self._rng.randrange(4)
        offset = self._size + gap
        padding = -part.numel() % PAGE_ROWS
        self._parts += [self._nan(gap), part.to(self._dtype).reshape(-1), self._nan(padding)]
        self._size = offset + part.numel() + padding
        return offset

    def add(self, lora: Lora, num_in: int, num_out: int) -> SitePages:
        """An adapter's site in runs of one or two pages, in random order, tails full of NaN."""
        rank = lora.a_RI.shape[0]
        runs: dict[int, tuple[int, int]] = {}
        starts, row = [], 0
        while row < rank:
            num_rows = min(PAGE_ROWS * self._rng.choice((1, 1, 2)), -(-(rank - row) // 8) * 8)
            starts.append((row, num_rows))
            row += num_rows
        for row, num_rows in self._rng.sample(starts, len(starts)):
            a, b = self._nan(num_rows * num_in), self._nan(num_rows * num_out)
            live = min(num_rows, rank - row)
            a.view(num_rows, num_in)[:live] = lora.a_RI[row : row + live].to(self._dtype)
            b.view(num_rows, num_out)[:live] = lora.b_OR.T[row : row + live].to(self._dtype)
            runs[row] = (self._put(torch.cat((a, b))), num_rows)
        return SitePages(
            rank, lora.scale, [runs[row] for row, _ in starts],
            row_scale=None if lora.row_scale_O is None else self._put(lora.row_scale_O),
            bias=None if lora.bias_O is None else self._put(lora.bias_O),
        )  # fmt: skip

    def memory(self) -> Tensor:
        return torch.cat([*self._parts, self._nan(4096)])


def create_case(
    rows: Sequence[int],
    *,
    ranks: Sequence[int] = (4, 8, 16, 33, 64),
    num_adapters: int = 10,
    num_in: int = 133,
    widths: tuple[int, ...] = (7, 1, 133),
    with_bias: bool = True,
    with_vectors: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
) -> Case:
    """Adapter i has rank `ranks[i % len]` and, of several sites, leaves out site i % 4.

    with_vectors: some adapters have row scales, some biases, some a bias and nothing else.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).mul(max(shape[-1], 1) ** -0.5).to(dtype)

    def lora(i: int, k: int, width: int) -> Lora | None:
        rank = ranks[i % len(ranks)]
        is_left_out = len(widths) > 1 and k == i % 4
        if is_left_out and not (with_vectors and i % 3 == 0):
            return None
        rank = 0 if is_left_out else rank
        m = 1 + normal(width) if with_vectors and i % 2 and rank else None
        bias = normal(width) if with_vectors and (i % 3 == 0 or is_left_out) else None
        return Lora(normal(rank, num_in), normal(width, rank), 0.5 + i / 4, m, bias)

    return Case(
        x=torch.randn(len(rows), num_in, generator=generator).to(dtype),
        w=normal(num_in, sum(widths)),
        bias=normal(sum(widths)) if with_bias else None,
        widths=widths,
        adapters=[[lora(i, k, w) for k, w in enumerate(widths)] for i in range(num_adapters)],
        rows=list(rows),
    )


def assert_near(got: Tensor, want: Tensor) -> None:
    """Relative to the largest value of the twin, at least 1."""
    assert got.shape == want.shape
    if got.numel() == 0:
        return
    error = (got.detach().cpu().double() - want).abs().max().item()
    bound = TOLERANCES[got.dtype] * max(1.0, want.abs().max().item())
    assert error <= bound, f"off by {error:.3g}, more than {bound:.3g}"
