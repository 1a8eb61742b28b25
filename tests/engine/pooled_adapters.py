"""Adapters that come and go in a pool, what was put into it, and what each adds to a row."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from weft_adapters.pool import PagePool, PooledAdapter
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import INPUTS, BaseSpec, Site
from weft_adapters.tensors import Float32
from weft_kernels.linear import LinearWeight, create_linear_weight

BASE = BaseSpec(
    digest="base",
    num_layers=2,
    hidden_size=16,
    query_size=24,
    key_value_size=8,
    intermediate_size=32,
    moe_intermediate_size=8,
    num_experts=3,
    moe_layers=frozenset({1}),
)
Q0, V0, DOWN0 = Site(0, "q_proj"), Site(0, "v_proj"), Site(0, "down_proj")
UP1 = [Site(1, "up_proj", expert) for expert in range(3)]
ROUTER1 = Site(1, "router")

Ranks = Mapping[Site, int]
# which sites have row scales, and which biases
Vectors = tuple[Collection[Site], Collection[Site]]
# adapters of ranks and sites that overlap in part
RANKS: dict[str, Ranks] = {
    "a": {Q0: 4, V0: 16, DOWN0: 8},
    "b": {V0: 3, UP1[0]: 8, UP1[2]: 2, ROUTER1: 5},
    "c": {Q0: 40, **dict.fromkeys(UP1, 12)},
}
# and with vectors: on and beside factors, of experts too; one that has nothing else
VECTORS: dict[str, Vectors] = {
    "b": ([V0, UP1[2]], [Q0, UP1[1], UP1[2]]),
    "only biases": ([], [Q0, DOWN0, UP1[0]]),
}


class LinearBatch(Protocol):
    """A batch of rows through adapted linears, as every form of adapters on a device has it."""

    def linear(
        self, x: Tensor, weight: LinearWeight, bias: Tensor | None, layer: int,
        names: tuple[str, ...], widths: Sequence[int],
    ) -> Tensor: ...  # fmt: skip


class PoolOfAdapters:
    """A pool with adapters that come and go, and what was put into it."""

    def __init__(self, device: torch.device | str = "cpu", budget_bytes: int = 2**20) -> None:
        self.device = torch.device(device)
        self.pool = PagePool(BASE, budget_bytes, torch.float32, self.device)
        self.weights: dict[str, dict[Site, SiteWeights]] = {}
        self.pooled: dict[str, PooledAdapter] = {}

    def load(self, digest: str, ranks: Ranks, seed: int = 0, vectors: Vectors = ((), ())) -> None:
        self.weights[digest] = create_weights(ranks, seed, vectors)
        pooled = self.pool.try_load(digest, self.weights[digest])
        assert pooled is not None
        self.pooled[digest] = pooled

    def load_all(
        self, adapters: Mapping[str, Ranks], vectors: Mapping[str, Vectors] | None = None
    ) -> None:
        by_digest = vectors or {}
        for seed, digest in enumerate({**adapters, **by_digest}):
            own = by_digest.get(digest, ((), ()))
            self.load(digest, adapters.get(digest, {}), seed, own)

    def free(self, digest: str) -> None:
        self.pool.free(digest)
        del self.pooled[digest]

    def assert_linears(self, batch: LinearBatch, rows: Sequence[str | None]) -> None:
        """Every row gets its own adapter's part at every site that is no expert's, or nothing."""
        for layer in range(BASE.num_layers):
            for names in INPUTS:
                if BASE.has(Site(layer, names[0])):
                    self._assert_linear(batch, rows, layer, names)

    def _assert_linear(
        self, batch: LinearBatch, rows: Sequence[str | None], layer: int, names: tuple[str, ...]
    ) -> None:
        sites = [Site(layer, name) for name in names]
        num_in, widths = BASE.shape(sites[0])[0], [BASE.shape(site)[1] for site in sites]
        x = torch.randn(len(rows), num_in, device=self.device)
        w = torch.randn(num_in, sum(widths), device=self.device)
        bias = torch.randn(sum(widths), device=self.device)
        got = batch.linear(x, create_linear_weight(w), bias, layer, names, widths).cpu()
        bases = (x @ w).cpu().split_with_sizes(list(widths), 1)
        for t, digest in enumerate(rows):
            parts = [
                self.adapted(digest, site, x[t], base[t].numpy())
                for site, base in zip(sites, bases, strict=True)
            ]
            want = np.concatenate(parts) + bias.cpu().numpy()
            np.testing.assert_allclose(got[t], want, rtol=1e-4, atol=1e-4)

    def adapted(
        self, digest: str | None, site: Site, x: Tensor, base: Float32 | float = 0.0
    ) -> Float32:
        """`m (base + s B (A x)) + b` `[out]` of an adapter at a site, base where it has nothing."""
        whole: Float32 = np.zeros(BASE.shape(site)[1], dtype=np.float32)
        whole += base
        if digest is None or site not in self.weights[digest]:
            return whole
        w = self.weights[digest][site]
        whole += w.scale * (x.cpu().numpy() @ w.a.T) @ w.b
        if w.row_scale is not None:
            whole *= w.row_scale
        if w.bias is not None:
            whole += w.bias
        return whole


def create_weights(ranks: Ranks, seed: int, vectors: Vectors = ((), ())) -> dict[Site, SiteWeights]:
    rng = np.random.default_rng(seed)
    weights = {}
    for site in sorted({*ranks, *vectors[1]}):
        num_in, num_out = BASE.shape(site)
        rank = ranks.get(site, 0)
        a, b, m, c = (
            rng.standard_normal(shape).astype(np.float32)
            for shape in ((rank, num_in), (rank, num_out), num_out, num_out)
        )
        row_scale, bias = m if site in vectors[0] else None, c if site in vectors[1] else None
        weights[site] = SiteWeights(a, b, 0.5 + seed, row_scale, bias)
    return weights
