"""Adapters that come and go in a pool, what was put into it, and what each adds to a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from weft_adapters.pool import PagePool, PooledAdapter
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import INPUTS, BaseSpec, Site
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

Ranks = Mapping[Site, int]
# adapters of ranks and sites that overlap in part
RANKS: dict[str, Ranks] = {
    "a": {Q0: 4, V0: 16, DOWN0: 8},
    "b": {V0: 3, UP1[0]: 8, UP1[2]: 2},
    "c": {Q0: 40, **dict.fromkeys(UP1, 12)},
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

    def load(self, digest: str, ranks: Ranks, seed: int = 0) -> None:
        self.weights[digest] = create_weights(ranks, seed)
        pooled = self.pool.try_load(digest, self.weights[digest])
        assert pooled is not None
        self.pooled[digest] = pooled

    def load_all(self, adapters: Mapping[str, Ranks]) -> None:
        for seed, (digest, ranks) in enumerate(adapters.items()):
            self.load(digest, ranks, seed)

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
        weight = create_linear_weight(torch.zeros(num_in, sum(widths), device=self.device))
        got = batch.linear(x, weight, None, layer, names, widths).cpu()
        for t, digest in enumerate(rows):
            want = np.concatenate([self.delta(digest, site, x[t]) for site in sites])
            np.testing.assert_allclose(got[t], want, rtol=1e-4, atol=1e-4)

    def delta(
        self, digest: str | None, site: Site, x: Tensor
    ) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
        """`s B (A x)` `[out]` of an adapter at a site, zeros where it has nothing there."""
        if digest is None or site not in self.weights[digest]:
            return np.zeros(BASE.shape(site)[1], dtype=np.float32)
        w = self.weights[digest][site]
        delta: np.ndarray[tuple[int, ...], np.dtype[Any]] = (
            w.scale * (x.cpu().numpy() @ w.a.T) @ w.b
        )
        return delta


def create_weights(ranks: Ranks, seed: int) -> dict[Site, SiteWeights]:
    rng = np.random.default_rng(seed)
    weights = {}
    for site, rank in ranks.items():
        a, b = (rng.standard_normal((rank, n)).astype(np.float32) for n in BASE.shape(site))
        weights[site] = SiteWeights(a, b, 0.5 + seed)
    return weights
