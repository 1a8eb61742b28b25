"""Writes of a step's keys and values into paged caches, both in one launch.

    cache[slot // block_size, slot % block_size] = new[t],    slot = slots[t] >= 0

in the cache's dtype. Rows with a negative slot are padding and touch nothing. In a cache of 8 bits
the D values of a token and head become `x[d] = s q[d]`:

    int8:       s = max |x| / 127, q = x / s to the nearest integer, halves to even
    fp8 (e4m3): s = max |x| / 448, q = x / s to the nearest number of that format

s is at least the smallest normal number, so that zeros do not make 0 / 0. Where a value is not
finite s is NaN and q is 0, so that what is read is not finite either. Where all are finite, the
int8 form gives the bits of `weft_kernels.attention.Int8Cache`.

k_TND, v_TND float `[T, N, D]`, a row's N D values side by side (a slice of a fused projection may
do); caches `[num_blocks, block_size, N, D]`, scales float32 `[num_blocks, block_size, N, 1]`;
slots_T int64 `[T]`. A block of the grid moves one row and up to `BLOCK_ELEMENTS / D` heads.

Legend: T rows, N KV heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.attention import Int8Cache
from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.configs import get_config, listed_configs

# what the largest value of a row becomes
_MOST = {torch.int8: 127, torch.float8_e4m3fn: 448}


@dataclass(frozen=True, slots=True)
class Fp8Cache:
    """Keys or values of one layer as `x[d] = s q[d]` for each token and head, `s = max |x| / 448`.

    data: float8_e4m3fn `[num_blocks, block_size, N, D]`; scale: float32 `[num_blocks, block_size,
    N, 1]`, NaN where a value is not finite.
    """

    data: Tensor
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.data.shape


Cache = Tensor | Int8Cache | Fp8Cache


def split_cache(cache: Cache) -> tuple[Tensor, Tensor | None]:
    """The data of a cache and its scales, None where it has none; ValueError where they are not
    laid out as the kernels read them."""
    data, scale = (cache, None) if isinstance(cache, Tensor) else (cache.data, cache.scale)
    if data.ndim != 4 or data.stride(3) != 1 or data.stride(2) != data.shape[3]:
        raise ValueError(
            "a cache is [num_blocks, block_size, N, D] with a token's N D values side by side, not "
            f"{tuple(data.shape)} with strides {data.stride()}"
        )
    if scale is None:
        if not data.dtype.is_floating_point or data.dtype.itemsize == 1:
            raise ValueError(f"a cache of {data.dtype} needs scales")
    elif scale.shape != (*data.shape[:3], 1) or not scale.is_contiguous():
        raise ValueError(
            f"the scales of a cache {tuple(data.shape)} are contiguous, one for each token and "
            f"head, not {tuple(scale.shape)} with strides {scale.stride()}"
        )
    return data, scale


@triton.jit
def _quantize(
    x_ND: tl.tensor, MOST: tl.constexpr, IS_INTEGER: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Scales `[N]`, and values over scales, rounded to integers or to numbers of e4m3."""
    inf = float("inf")
    # a maximum need not carry NaN on
    most_N = tl.max(tl.where(x_ND == x_ND, tl.abs(x_ND), inf), 1)
    scale_N = tl.maximum(
        tl.div_rn(most_N, tl.full(most_N.shape, MOST, tl.float32)), 1.1754943508222875e-38
    )
    is_finite_N = most_N < inf
    wide_ND = tl.broadcast_to(scale_N[:, None], x_ND.shape)
    q_ND = tl.where(is_finite_N[:, None], tl.div_rn(x_ND, wide_ND), 0.0)
    if IS_INTEGER:
        steps_ND = tl.full(q_ND.shape, 12582912.0, tl.float32)
    else:
        # 3 bits of mantissa below the exponent, which is -6 at least
        exponent_ND = tl.maximum(q_ND.to(tl.int32, bitcast=True) & 0x7F800000, 121 << 23)
        steps_ND = (exponent_ND - (3 << 23)).to(tl.float32, bitcast=True) * 12582912.0
    # beside 1.5 * 2^23 steps float32 has no room for a part of one: to the nearest, halves to even
    return tl.where(is_finite_N, scale_N, float("nan")), (q_ND + steps_ND) - steps_ND


@triton.jit
def _kv_write_kernel(
    k_cache: tl.tensor, v_cache: tl.tensor, k_scale: tl.tensor, v_scale: tl.tensor,
    k: tl.tensor, v: tl.tensor, slots: tl.tensor,
    stride_kt: tl.tensor, stride_vt: tl.tensor, stride_block: tl.tensor, stride_token: tl.tensor,
    num_heads: tl.tensor,
    MOST: tl.constexpr, IS_INTEGER: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    if slot < 0:
        return
    heads_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_D = tl.arange(0, BLOCK_D)
    offs_ND = heads_N[:, None] * D + offs_D[None, :]
    is_live_ND = (heads_N < num_heads)[:, None] & (offs_D < D)[None, :]
    k_ND = tl.load(k + row * stride_kt + offs_ND, mask=is_live_ND, other=0.0)
    v_ND = tl.load(v + row * stride_vt + offs_ND, mask=is_live_ND, other=0.0)
    if MOST:
        place_N = slot * num_heads + heads_N
        k_scale_N, k_ND = _quantize(k_ND.to(tl.float32), MOST, IS_INTEGER)
        v_scale_N, v_ND = _quantize(v_ND.to(tl.float32), MOST, IS_INTEGER)
        tl.store(k_scale + place_N, k_scale_N, mask=heads_N < num_heads)
        tl.store(v_scale + place_N, v_scale_N, mask=heads_N < num_heads)
    to = slot // BLOCK_SIZE * stride_block + slot % BLOCK_SIZE * stride_token
    tl.store(k_cache + to + offs_ND, k_ND.to(k_cache.dtype.element_ty), mask=is_live_ND)
    tl.store(v_cache + to + offs_ND, v_ND.to(v_cache.dtype.element_ty), mask=is_live_ND)


def _constants(data_dtype: torch.dtype) -> dict[str, int | None]:
    return {"MOST": _MOST.get(data_dtype, 0), "IS_INTEGER": data_dtype == torch.int8}


def _block_heads(num_heads: int, block_d: int, block_elements: int) -> int:
    heads = triton.next_power_of_2(num_heads)
    return int(min(heads, max(1, block_elements // block_d)))


def write_kv(k_cache: Cache, v_cache: Cache, k_TND: Tensor, v_TND: Tensor, slots_T: Tensor) -> None:
    """As the module's equation says, in place; both caches of one kind and layout."""
    k_data, k_scale = split_cache(k_cache)
    v_data, v_scale = split_cache(v_cache)
    if k_data.dtype != v_data.dtype or k_data.stride() != v_data.stride():
        raise ValueError("the caches of keys and values differ in dtype or layout")
    num_rows, num_heads, head_dim = k_TND.shape
    for new in (k_TND, v_TND):
        if new.shape != (num_rows, *k_data.shape[2:]):
            raise ValueError(
                f"new keys and values are [T, N, D] as the cache {tuple(k_data.shape)} has N and "
                f"D, not {tuple(new.shape)}"
            )
        if num_rows and (new.stride(2) != 1 or new.stride(1) != head_dim):
            raise ValueError(f"a row's N D values lie side by side, not at {new.stride()}")
    if slots_T.shape != (num_rows,) or slots_T.dtype != torch.int64:
        raise ValueError(f"slots are int64, one for each of {num_rows} rows")
    if num_rows == 0:
        return
    config = get_config("kv_write", width=num_heads * head_dim)
    block_d = triton.next_power_of_2(head_dim)
    block_n = _block_heads(num_heads, block_d, config["BLOCK_ELEMENTS"])
    _kv_write_kernel[(num_rows, triton.cdiv(num_heads, block_n))](
        k_data, v_data, k_scale, v_scale, k_TND, v_TND, slots_T,
        k_TND.stride(0), v_TND.stride(0), k_data.stride(0), k_data.stride(1), num_heads,
        **_constants(k_data.dtype),
        BLOCK_SIZE=k_data.shape[1], D=head_dim, BLOCK_N=block_n, BLOCK_D=block_d,
        num_warps=config["num_warps"], num_stages=config["num_stages"],
    )  # fmt: skip


def aot_variants() -> list[AotVariant]:
    variants = []
    kinds = {"bf16": torch.bfloat16, "i8": torch.int8, "fp8e4nv": torch.float8_e4m3fn}
    for shape, config in listed_configs("kv_write"):
        for head_dim in (64, 128):
            for kind, dtype in kinds.items():
                num_heads = shape["width"] // head_dim
                scale = "constexpr" if kind == "bf16" else "*fp32"
                signature = {name: f"*{kind}" for name in ("k_cache", "v_cache")}
                signature |= {name: scale for name in ("k_scale", "v_scale")}
                signature |= {name: "*bf16" for name in ("k", "v")}
                signature |= {"slots": "*i64", "num_heads": "i32"}
                strides = ("stride_kt", "stride_vt", "stride_block", "stride_token")
                signature |= {name: "i32" for name in strides}
                constants = _constants(dtype) | {
                    "BLOCK_SIZE": 16,
                    "D": head_dim,
                    "BLOCK_N": _block_heads(num_heads, head_dim, config["BLOCK_ELEMENTS"]),
                    "BLOCK_D": head_dim,
                }
                if kind == "bf16":
                    constants |= {"k_scale": None, "v_scale": None}
                variants.append(
                    AotVariant(
                        name=f"kv_write/{kind}-d{head_dim}-w{shape['width']}",
                        kernel=_kv_write_kernel,
                        signature=signature,
                        constants=constants,
                        divisible_by_16=[n for n in signature if n != "num_heads"],
                        num_warps=config["num_warps"],
                        num_stages=config["num_stages"],
                    )
                )
    return variants
