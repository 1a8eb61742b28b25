"""One LoRA problem of the benches: a batch, its adapters at the sites that share an input, and the
plain ways to compute it that others are measured against.

    y[t] += (x[t] A[a(t)]^T) B[a(t)]  at each site's columns, a(t) = the adapter of row t

Scales are 1, there are no biases, and every row has an adapter: what costs, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from benchmarks.gpu.harness import Setting
from torch import Tensor

from weft_kernels.cuda.configs import Launch
from weft_kernels.cuda.lora_sites import SiteGroup, create_site_group
from weft_kernels.cuda.page_columns import SitePages
from weft_kernels.cuda.pages import PAGE_ROWS, PageTable
from weft_kernels.cuda.segments import Segments, create_segments
from weft_kernels.cuda.slot_pages import create_page_table
from weft_kernels.popularity import assign_adapters


@dataclass(frozen=True, slots=True)
class Shape:
    """What a problem is made from; `ranks` are given to the adapters in turn."""

    site: str
    num_in: int
    widths: tuple[int, ...]
    num_tokens: int
    num_adapters: int
    ranks: tuple[int, ...]

    @property
    def adapter_ranks(self) -> list[int]:
        return [self.ranks[i % len(self.ranks)] for i in range(self.num_adapters)]

    def num_bytes(self, itemsize: int) -> int:
        """Each used adapter at its true rank and x once, y once in and once out."""
        num_out = sum(self.widths)
        rows = sum(self.adapter_ranks) * sum(self.num_in + width for width in self.widths)
        return itemsize * (rows + self.num_tokens * (self.num_in + 2 * num_out))

    @property
    def num_flops(self) -> int:
        """Of rows at their adapters' mean rank."""
        rank = sum(self.adapter_ranks) / self.num_adapters
        return int(2 * self.num_tokens * rank * sum(self.num_in + width for width in self.widths))


@dataclass(frozen=True, slots=True)
class Problem:
    """a[g][i] `[R_i, in]` and b[g][i] `[R_i, out_g]`: adapter i at site g, views of the pool.

    rows: the adapter of each row. y `[T, O]` holds what the base GEMM left there.
    """

    shape: Shape
    x: Tensor
    y: Tensor
    rows: Sequence[int]
    slots: Tensor
    a: Sequence[Sequence[Tensor]]
    b: Sequence[Sequence[Tensor]]
    table: PageTable
    group: SiteGroup
    segments: Segments

    def columns(self, y: Tensor) -> Sequence[Tensor]:
        """y by site."""
        return torch.split(y, list(self.shape.widths), dim=1)

    def delta(self) -> Tensor:
        """What is to be added to y, in float64."""
        out = torch.zeros(self.y.shape, dtype=torch.float64, device=self.y.device)
        for i in sorted(set(self.rows)):
            at = (self.slots == i).nonzero()[:, 0]
            x = self.x[at].double()
            for g, columns in enumerate(self.columns(out)):
                columns[at] = (x @ self.a[g][i].double().T) @ self.b[g][i].double()
        return out

    def padded(self) -> tuple[list[Tensor], list[Tensor]]:
        """A `[adapters, max rank, in]` and B `[adapters, max rank, out]` of each site, with zero
        rows past an adapter's rank: the slabs of engines that have no pages."""
        max_rank = max(self.shape.ranks)

        def pad(parts: Sequence[Tensor]) -> Tensor:
            slab = parts[0].new_zeros(len(parts), max_rank, parts[0].shape[1])
            for i, part in enumerate(parts):
                slab[i, : len(part)] = part
            return slab

        return [pad(a) for a in self.a], [pad(b) for b in self.b]


def create_problem(setting: Setting, shape: Shape, *, dtype: torch.dtype | None = None) -> Problem:
    dtype, device = dtype or setting.dtype, setting.device
    rows = assign_adapters("distinct", shape.num_tokens, shape.num_adapters, seed=0)
    ranks = shape.adapter_ranks
    padded = [-(-rank // PAGE_ROWS) * PAGE_ROWS for rank in ranks]
    widths = [shape.num_in + width for width in shape.widths]
    pool = torch.empty(sum(padded) * sum(widths), dtype=dtype, device=device)
    pool.normal_(std=shape.num_in**-0.5)
    a: list[list[Tensor]] = [[] for _ in shape.widths]
    b: list[list[Tensor]] = [[] for _ in shape.widths]
    adapters, start = [], 0
    for rank, num_rows in zip(ranks, padded, strict=True):
        pages = {}
        for g, width in enumerate(shape.widths):
            pages[g] = SitePages(rank, 1.0, [(start, num_rows)])
            middle, end = start + num_rows * shape.num_in, start + num_rows * widths[g]
            a[g].append(pool[start:middle].view(num_rows, shape.num_in)[:rank])
            b[g].append(pool[middle:end].view(num_rows, width)[:rank])
            start = end
        adapters.append(pages)
    sites = [(shape.num_in, width) for width in shape.widths]
    table = create_page_table(pool, sites, adapters, max_rank=max(ranks)).table
    slots = torch.tensor(rows, dtype=torch.int32).to(device)
    return Problem(
        shape=shape,
        x=torch.randn(shape.num_tokens, shape.num_in, device=device).to(dtype),
        y=torch.zeros(shape.num_tokens, sum(shape.widths), dtype=dtype, device=device),
        rows=rows,
        slots=slots,
        a=a,
        b=b,
        table=table,
        group=create_site_group(range(len(sites)), shape.num_in, shape.widths, device),
        segments=create_segments(slots, shape.num_adapters),
    )


def torch_loop(problem: Problem) -> Launch:
    """Adapter by adapter, as PEFT does it."""
    rows = {i: (problem.slots == i).nonzero()[:, 0] for i in sorted(set(problem.rows))}
    columns = problem.columns(problem.y)

    def launch() -> None:
        for i, at in rows.items():
            x = problem.x[at]
            for g, y in enumerate(columns):
                y.index_add_(0, at, (x @ problem.a[g][i].T) @ problem.b[g][i])

    return launch


def gather_bmm(problem: Problem) -> Launch:
    """Each row's padded A and B gathered, then two batched products."""
    a, b = problem.padded()
    slots = problem.slots.long()

    def launch() -> None:
        for g, y in enumerate(problem.columns(problem.y)):
            h = torch.bmm(problem.x[:, None], a[g][slots].transpose(1, 2))
            y.add_(torch.bmm(h, b[g][slots])[:, 0])

    return launch


def masked_dense(problem: Problem) -> Launch:
    """All adapters side by side in two dense products, foreign columns of h zeroed between.

    A of all sites is one matrix; nothing is padded.
    """
    num_tokens = problem.shape.num_tokens
    a = torch.cat([part for parts in problem.a for part in parts])
    b = [torch.cat(list(parts)) for parts in problem.b]
    owners = torch.cat(
        [torch.full((len(part),), i) for parts in problem.a for i, part in enumerate(parts)]
    ).to(problem.x.device)
    mask = (owners[None, :] == problem.slots[:, None]).to(problem.x.dtype)
    sizes = [len(part) for part in b]
    columns = problem.columns(problem.y)
    assert mask.shape == (num_tokens, len(a))

    def launch() -> None:
        h = (problem.x @ a.T).mul_(mask)
        for y, h_site, b_site in zip(columns, torch.split(h, sizes, dim=1), b, strict=True):
            y.addmm_(h_site, b_site)

    return launch


BASELINES = {
    "torch loop": torch_loop,
    "gather, bmm": gather_bmm,
    "masked dense": masked_dense,
}
