"""Root-mean-square normalisation (Zhang & Sennrich 2019), with the residual's addition before it.

    x[t, n] += delta[t, n]                     where a delta is given, rounded to x's dtype
    y[t, n]  = x[t, n] / sqrt(mean(x[t, n]^2) + eps) * weight[n]

Legend: T rows, N heads (1 for a whole row), D width. x, delta, y `[T, D]` or `[T, N, D]` of one
float dtype, unit stride along D, 16-byte aligned rows for full speed; weight `[D]`, shared by all
heads, or `[N, D]`, the same dtype. The sum of squares and the products are float32 and rounded
once. A row's result depends on nothing but the row: the order of its sum is fixed.

torch has a good kernel for the form without a delta and with one weight; with the residual, which
all norms of a decoder but its first have, it takes two launches and moves x once more.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.configs import Config, Launch, Shape, TuningSpace, get_config, listed_configs


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    delta: Tensor | None = None,
    *,
    out: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """y, in `out` where given; with a delta x is changed in place."""
    x_TND = _heads(x, "x")
    num_rows, num_heads, width = x_TND.shape
    _check_weight(weight, x_TND)
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    y_TND = _heads(out, "out")
    delta_TND = x_TND if delta is None else _heads(delta, "delta")
    for name, other in (("out", y_TND), ("delta", delta_TND)):
        if other.shape != x_TND.shape or other.dtype != x.dtype:
            raise ValueError(
                f"{name} must be {tuple(x.shape)} of {x.dtype}, as x, "
                f"not {tuple(other.shape)} of {other.dtype}"
            )
    if num_rows == 0:
        return out
    config = config or get_config("rms_norm", width=width)
    block_rows = config["BLOCK_ROWS"]
    _rms_norm_kernel[(triton.cdiv(num_rows * num_heads, block_rows),)](
        x_TND, None if delta is None else delta_TND, weight, y_TND,
        num_rows * num_heads, num_heads, eps,
        x_TND.stride(0), x_TND.stride(1), delta_TND.stride(0), delta_TND.stride(1),
        y_TND.stride(0), y_TND.stride(1), width if weight.dim() == 2 else 0,
        WIDTH=width, BLOCK_D=triton.next_power_of_2(width), BLOCK_ROWS=block_rows,
        num_warps=config["num_warps"], num_stages=config["num_stages"],
    )  # fmt: skip
    return out


def _heads(x: Tensor, name: str) -> Tensor:
    """`[T, N, D]`; a matrix has one head."""
    if x.dim() not in (2, 3) or x.stride(-1) != 1:
        raise ValueError(f"{name} must be [T, D] or [T, N, D] with unit stride along D")
    return x if x.dim() == 3 else x[:, None]


def _check_weight(weight: Tensor, x_TND: Tensor) -> None:
    _, num_heads, width = x_TND.shape
    if tuple(weight.shape) not in ((width,), (num_heads, width)) or weight.dtype != x_TND.dtype:
        raise ValueError(
            f"weight must be [{width}] or [{num_heads}, {width}] of {x_TND.dtype}, "
            f"not {tuple(weight.shape)} of {weight.dtype}"
        )
    if not weight.is_contiguous():
        raise ValueError("weight must be contiguous")


@triton.jit
def _rms_norm_kernel(
    x_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    y_ptr: tl.tensor,
    num_rows: tl.tensor,
    num_heads: tl.tensor,
    eps: tl.tensor,
    x_stride_t: tl.tensor,
    x_stride_n: tl.tensor,
    delta_stride_t: tl.tensor,
    delta_stride_n: tl.tensor,
    y_stride_t: tl.tensor,
    y_stride_n: tl.tensor,
    weight_stride_n: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
) -> None:
    """Each program normalises BLOCK_ROWS rows of one head each, whole in registers."""
    rows_R = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    tokens_R = (rows_R // num_heads).to(tl.int64)
    heads_R = (rows_R % num_heads).to(tl.int64)
    columns_D = tl.arange(0, BLOCK_D)
    mask = (rows_R < num_rows)[:, None] & (columns_D < WIDTH)[None, :]
    x_at = tokens_R * x_stride_t + heads_R * x_stride_n
    x_ptrs = x_ptr + x_at[:, None] + columns_D[None, :]
    x = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
    if delta_ptr is not None:
        delta_at = tokens_R * delta_stride_t + heads_R * delta_stride_n
        delta_ptrs = delta_ptr + delta_at[:, None] + columns_D[None, :]
        x += tl.load(delta_ptrs, mask=mask, other=0.0).to(tl.float32)
        rounded = x.to(x_ptr.dtype.element_ty)
        tl.store(x_ptrs, rounded, mask=mask)
        x = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + eps)
    weight_ptrs = weight_ptr + (heads_R * weight_stride_n)[:, None] + columns_D[None, :]
    weight = tl.load(weight_ptrs, mask=mask, other=0.0).to(tl.float32)
    y_at = tokens_R * y_stride_t + heads_R * y_stride_n
    y = (x * inverse[:, None] * weight).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + y_at[:, None] + columns_D[None, :], y, mask=mask)


def aot_variants() -> list[AotVariant]:
    """Every configuration, with and without a delta."""
    pointers = ["x_ptr", "delta_ptr", "weight_ptr", "y_ptr"]
    strides = [
        f"{tensor}_stride_{axis}" for tensor in ("x", "delta", "y") for axis in ("t", "n")
    ] + ["weight_stride_n"]
    counts = {"num_rows": "i32", "num_heads": "i32", "eps": "fp32"}
    variants = []
    for shape, config in listed_configs("rms_norm"):
        width = shape["width"]
        blocks = {"WIDTH": width, "BLOCK_D": width, "BLOCK_ROWS": config["BLOCK_ROWS"]}
        for form in ("plain", "residual"):
            variants.append(
                AotVariant(
                    name=f"rms_norm/{form}-d{width}",
                    kernel=_rms_norm_kernel,
                    signature=dict.fromkeys(pointers, "*bf16")
                    | counts
                    | dict.fromkeys(strides, "i32"),
                    constants=blocks | ({"delta_ptr": None} if form == "plain" else {}),
                    divisible_by_16=pointers + strides,
                    num_warps=config["num_warps"],
                    num_stages=config["num_stages"],
                )
            )
    return variants


def _candidates(shape: Shape) -> list[Config]:
    return [
        {"BLOCK_ROWS": rows, "num_warps": warps, "num_stages": 1}
        for rows in (1, 2, 4, 8, 16)
        for warps in (1, 2, 4, 8, 16)
        # at least 8 elements, a 16-byte load, for each thread, and at most 64, or it spills
        if 8 * 32 * warps <= rows * triton.next_power_of_2(shape["width"]) <= 64 * 32 * warps
    ]


def _create_launch(shape: Shape, device: torch.device) -> Callable[[Config], Launch]:
    """64 rows with a delta, as in a decode step."""
    x, delta = torch.randn(2, 64, shape["width"], device=device).to(torch.bfloat16)
    weight = torch.randn(shape["width"], device=device).to(torch.bfloat16)
    out = torch.empty_like(x)

    def with_config(config: Config) -> Launch:
        return lambda: rms_norm(x, weight, 1e-6, delta, out=out, config=config)

    return with_config


TUNING = TuningSpace(
    operator="rms_norm",
    shapes=[{"width": width} for width in (128, 2048, 4096, 8192)],
    candidates=_candidates,
    create_launch=_create_launch,
)
