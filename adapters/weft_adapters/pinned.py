"""Factors in page-locked host memory, from which a CUDA device reads by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch

from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import Site
from weft_adapters.tensors import Float32

# torch keeps page-locked memory in powers of two: pieces of one leave little unused
_CHUNK_ELEMENTS = 1024 * 1024


def _allocate(num_elements: int) -> Float32:
    array: Float32 = torch.empty(num_elements, dtype=torch.float32, pin_memory=True).numpy()
    return array


def pin(
    weights: Mapping[Site, SiteWeights], allocate: Callable[[int], Float32] = _allocate
) -> dict[Site, SiteWeights]:
    """The same factors, in memory of `allocate`; it goes with the last of them."""
    left = np.empty(0, np.float32)
    moved: dict[int, Float32] = {}  # sites may share a factor

    def move(array: Float32) -> Float32:
        nonlocal left
        if id(array) in moved:
            return moved[id(array)]
        if array.size > left.size:
            left = allocate(max(array.size, _CHUNK_ELEMENTS))
        place, left = left[: array.size].reshape(array.shape), left[array.size :]
        place[...] = array
        moved[id(array)] = place
        return place

    return {site: replace(w, a=move(w.a), b=move(w.b)) for site, w in weights.items()}
