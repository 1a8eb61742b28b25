"""The meaning of the KV cache and of paged attention: naive float64 twins, as in `reference.py`.

Legend: T rows, N KV heads, G query heads per KV head, D head dim, L keys of a query.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weft_kernels.reference import to_float64


def write_kv(cache: Tensor, new_TND: Tensor, slots_T: Sequence[int]) -> Tensor:
    """A copy of `cache` with `cache[slot // block_size, slot % block_size] = new`.

    cache `[num_blocks, block_size, N, D]`; new_TND `[T, N, D]`.
    """
    out, block_size = to_float64(cache).clone(), cache.shape[1]
    for new_ND, slot in zip(new_TND, slots_T, strict=True):
        out[slot // block_size, slot % block_size] = to_float64(new_ND)
    return out


def rounded_kv(cache: Tensor) -> Tensor:
    """Each token and head to the nearest of `s q`, q = -127 .. 127, `s = max |x| / 127`.

    cache `[num_blocks, block_size, N, D]`; a row that is not finite comes out as NaN.
    """
    return _rounded(cache, 127, torch.round)


def rounded_fp8(cache: Tensor) -> Tensor:
    """Each token and head to the nearest of `s q`, `s = max |x| / 448`, q a number of 4 exponent
    and 3 mantissa bits: `q = m 2^e`, m a multiple of 1/8 below 2, e >= -6.

    cache `[num_blocks, block_size, N, D]`; a row that is not finite comes out as NaN.
    """

    def to_nearest(q_D: Tensor) -> Tensor:
        exponent_D = q_D.abs().clamp_min(2.0**-6).log2().floor()
        step_D = 2.0 ** (exponent_D - 3)
        return (q_D / step_D).round() * step_D

    return _rounded(cache, 448, to_nearest)


def _rounded(cache: Tensor, largest: int, to_nearest: Callable[[Tensor], Tensor]) -> Tensor:
    """`s to_nearest(x / s)` of each token and head, `s = max |x| / largest`."""
    rows = []
    for x_D in to_float64(cache).reshape(-1, cache.shape[-1]):
        most = float(x_D.abs().max())
        if not math.isfinite(most):
            rows.append(torch.full_like(x_D, math.nan))
        else:
            rows.append(to_nearest(x_D / most * largest) / largest * most if most else x_D)
    return torch.stack(rows).view(cache.shape)


def paged_attention(
    q_TND: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    spans: Sequence[tuple[int, int, int]],
    tables: Sequence[Sequence[int]],
    scale: float,
    window: int | None = None,
) -> Tensor:
    """`o[t, h] = sum_j softmax_j(scale * q[t, h] . k[j, h / G]) v[j, h / G]`, `j <= position(t)`
    and, with a window, `j > position(t) - window`.

    q_TND `[T, N G, D]`; spans[i] = (first batch row, chunk length, context length with the chunk)
    of request i; tables[i] = its blocks. Only keys that a query may look at are read.
    """
    out_TND = torch.zeros(q_TND.shape, dtype=torch.float64)
    block_size, num_kv_heads = k_cache.shape[1:3]
    groups = q_TND.shape[1] // num_kv_heads
    for (first, num_new, num_total), blocks in zip(spans, tables, strict=True):
        for offset in range(num_new):
            position = num_total - num_new + offset
            keys = range(0 if window is None else max(0, position - window + 1), position + 1)
            blocks_L = [blocks[j // block_size] for j in keys]
            places_L = [j % block_size for j in keys]
            for h in range(q_TND.shape[1]):
                q_D = to_float64(q_TND[first + offset, h])
                k_LD = to_float64(k_cache[blocks_L, places_L, h // groups])
                v_LD = to_float64(v_cache[blocks_L, places_L, h // groups])
                out_TND[first + offset, h] = (scale * (k_LD @ q_D)).softmax(0) @ v_LD
    return out_TND
