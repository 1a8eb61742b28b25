"""What DoRA's magnitudes and saved biases come to on a base: row scales, and biases to add.

    y = m (W x + s B (A x)) + base_bias + bias
    m = magnitude / ||W + s B A||, row by row, through W as it is served    (Liu et al. 2024)
    bias = saved bias - base_bias

The base's weights are given by whoever serves them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from weft_adapters.base_weights import BaseWeights
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.tensors import Float32, TensorFile
from weft_adapters.vectors import VectorNames


def add_vectors(
    weights: Mapping[Site, SiteWeights],
    names: VectorNames,
    file: TensorFile,
    base: BaseSpec,
    base_weights: BaseWeights,
    row_scales: Mapping[Site, Float32] | None = None,
) -> dict[Site, SiteWeights]:
    """The factors with their row scales and biases; `row_scales`: where they are known already.

    ValueError for a row that the adapter undoes, which has no direction to scale.
    """
    found = dict(weights)
    for site, name in names.magnitudes.items():
        known = None if row_scales is None else row_scales[site]
        w = found[site]
        m = row_scale(site, w, file.read(name), base_weights) if known is None else known
        found[site] = replace(w, row_scale=m)
    for site, name in names.biases.items():
        own = base_weights.bias(site)
        saved = file.read(name)
        w = found[site] if site in found else _without_factors(site, base)
        found[site] = replace(w, bias=saved if own is None else saved - own)
    return found


def row_scale(
    site: Site, weights: SiteWeights, magnitude: Float32, base_weights: BaseWeights
) -> Float32:
    """m of one site; magnitude `[out]`. ValueError for a row that the adapter undoes."""
    norms = base_weights.row_norms(site, weights.a, weights.b, weights.scale)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        m = magnitude / norms
    if not np.isfinite(m).all():
        row = int(np.flatnonzero(~np.isfinite(m))[0])
        raise ValueError(
            f"DoRA at {site} has no row scale for row {row}: a magnitude of {magnitude[row]:g} "
            f"over a row of length {norms[row]:g}"
        )
    return m


def _without_factors(site: Site, base: BaseSpec) -> SiteWeights:
    num_in, num_out = base.shape(site)
    return SiteWeights(np.zeros((0, num_in), np.float32), np.zeros((0, num_out), np.float32), 1.0)
