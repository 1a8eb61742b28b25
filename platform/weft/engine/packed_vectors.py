"""The row scales and biases of the adapters in use, packed by slot for torch's operators.

They are small: all are packed anew whenever the set of those that have any changes.

Legend: T rows, O out over the sites of an input, S slots, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weft_adapters.pool import PagePool, PooledAdapter
from weft_adapters.sites import INPUTS, BaseSpec, Site
from weft_kernels.moe import ExpertVectors
from weft_kernels.row_vectors import SlotVectors, VectorRows, apply_vectors_

# a layer, and the first of the projections that read the same rows
Input = tuple[int, str]
_NAMES_OF = {name: names for names in INPUTS for name in names}


@dataclass(frozen=True, slots=True)
class PackedVectors:
    """Of a set of adapters: `slot_of` by digest, and the vectors by input."""

    slot_of: Mapping[str, int]
    inputs: Mapping[Input, SlotVectors]

    def try_select(
        self, row_digests: Sequence[str | None], device: torch.device
    ) -> BatchVectors | None:
        """Those of a batch; None where no row has any."""
        if not self.slot_of:
            return None
        slots = [self.slot_of.get(digest or "") for digest in row_digests]
        pairs = [(t, slot) for t, slot in enumerate(slots) if slot is not None]
        if not pairs:
            return None
        rows_N, slots_N = torch.tensor(pairs, dtype=torch.int64).t().to(device).contiguous()
        return BatchVectors(VectorRows(rows_N, slots_N), self.inputs)


@dataclass(frozen=True, slots=True)
class BatchVectors:
    """Of a step."""

    rows: VectorRows
    inputs: Mapping[Input, SlotVectors]
    _with_base: dict[Input, SlotVectors] = field(default_factory=dict)

    def apply_(self, y_TO: Tensor, bias_O: Tensor | None, key: Input) -> None:
        """See `weft_kernels.row_vectors`; y_TO has the columns of all sites of the input."""
        if key not in self.inputs:
            return
        if key not in self._with_base:
            self._with_base[key] = self.inputs[key].with_base(bias_O)
        apply_vectors_(y_TO, self.rows, self._with_base[key])

    def experts(self, layer: int) -> ExpertVectors | None:
        """Of one layer's experts; None where nobody has any there."""
        gate_up, down = (self._experts_at(layer, name) for name in ("gate_proj", "down_proj"))
        if gate_up is None and down is None:
            return None
        return ExpertVectors(self.rows, gate_up, down)

    def _experts_at(self, layer: int, name: str) -> SlotVectors | None:
        found = self.inputs.get((layer, name))
        return found if found is not None and found.scales_SO.dim() == 3 else None


SiteVectors = Mapping[Site, tuple[Tensor | None, Tensor | None]]
"""Copies of one adapter's row scales and biases, at the sites where it has any."""


def copy_vectors(pool: PagePool, adapter: PooledAdapter) -> SiteVectors:
    """They stay when its pages are others'."""
    own = [s for s, p in adapter.sites.items() if (p.row_scale, p.bias) != (None, None)]
    found = {site: pool.read_vectors(adapter.digest, site) for site in own}
    return {site: (_copy(scale), _copy(bias)) for site, (scale, bias) in found.items()}


def _copy(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.clone()


def pack_vectors(
    base: BaseSpec, adapters: Mapping[str, SiteVectors], dtype: torch.dtype, device: torch.device
) -> PackedVectors:
    """A slot for each, in their order."""
    inputs: dict[Input, SlotVectors] = {}
    for slot, sites in enumerate(adapters.values()):
        for site, vectors in sites.items():
            names = _NAMES_OF[site.projection]
            widths = [base.shape(Site(site.layer, name, site.expert))[1] for name in names]
            key = (site.layer, names[0])
            if key not in inputs:
                slots = (len(adapters),)
                size = slots if site.expert is None else (*slots, base.num_experts)
                ones = torch.ones(*size, sum(widths), dtype=dtype, device=device)
                inputs[key] = SlotVectors(ones, torch.zeros_like(ones))
            place = names.index(site.projection)
            columns = slice(sum(widths[:place]), sum(widths[: place + 1]))
            index = (slot,) if site.expert is None else (slot, site.expert)
            packed = inputs[key]
            for target, vector in zip((packed.scales_SO, packed.biases_SO), vectors, strict=True):
                if vector is not None:
                    target[index][columns] = vector
    return PackedVectors({digest: slot for slot, digest in enumerate(adapters)}, inputs)
