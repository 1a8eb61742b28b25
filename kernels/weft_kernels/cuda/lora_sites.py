"""The sites that share an input (q, k, v; gate, up), as the LoRA kernels address them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.pages import PAGE_ROWS

_PAGE_ROWS = tl.constexpr(PAGE_ROWS)


@dataclass(frozen=True, slots=True)
class SiteGroup:
    """`sites[g]`: a site's index in the page table; `widths[g]`: its columns of y, side by side.

    site_ids: int32 `[G]`, the sites on the device. Made by `create_site_group`, once per layer.
    """

    sites: tuple[int, ...]
    num_in: int
    widths: tuple[int, ...]
    site_ids: Tensor
    _chunks: dict[int, Tensor] = field(default_factory=dict)

    @property
    def num_out(self) -> int:
        return sum(self.widths)

    @property
    def is_aligned(self) -> bool:
        """Every site's columns can be read and written as vectors of 8."""
        return all(width % 8 == 0 for width in self.widths)

    def chunks(self, block_columns: int) -> Tensor:
        """int32 `[C, 4]`: y's columns in blocks that do not cross sites: (g, first column within
        the site, first column of the site in y, width of the site).

        The first call for a size copies to the device: to be made before a graph is captured.
        """
        if block_columns not in self._chunks:
            rows = []
            first = 0
            for g, width in enumerate(self.widths):
                rows += [(g, n, first, width) for n in range(0, width, block_columns)]
                first += width
            chunks = torch.tensor(rows, dtype=torch.int32).to(self.site_ids.device)
            self._chunks[block_columns] = chunks
        return self._chunks[block_columns]


def create_site_group(
    sites: Sequence[int], num_in: int, widths: Sequence[int], device: torch.device
) -> SiteGroup:
    """ValueError where sites and widths do not go together."""
    if not sites or len(sites) != len(widths) or min(widths) < 1 or num_in < 1:
        raise ValueError(f"{len(sites)} sites of widths {list(widths)} do not make a group")
    if len(set(sites)) != len(sites) or min(sites) < 0:
        raise ValueError(f"the sites {list(sites)} are not distinct indices")
    site_ids = torch.tensor(list(sites), dtype=torch.int32).to(device)
    return SiteGroup(tuple(sites), num_in, tuple(widths), site_ids)


@triton.jit
def page_rows(
    offsets_ptr: tl.tensor,
    first_page: tl.tensor,
    rows_R: tl.tensor,
    rank: tl.tensor,
    width: tl.tensor,
) -> tl.tensor:
    """int64 `[R]`: where rank rows of a page list start in the pool; row r is on page r // 8."""
    pages = tl.load(offsets_ptr + first_page + rows_R // _PAGE_ROWS, mask=rows_R < rank, other=0)
    # pages start at multiples of 8 elements: rows of 16 bytes can be loaded as vectors
    return tl.multiple_of(pages, 8) + (rows_R % _PAGE_ROWS) * width
