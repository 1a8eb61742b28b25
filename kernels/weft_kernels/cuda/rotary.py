"""Rotary positions (Su et al. 2021) on the heads of q and k, after the norm that some models give
each head, in place and in one launch.

    y[t, n] = x[t, n] / sqrt(mean(x[t, n]^2) + eps) * weight[n]     with weights, else x[t, n]
    x[t, n] = [y1 cos - y2 sin | y2 cos + y1 sin],  [y1 | y2] = y[t, n],
              cos, sin = table[positions[t]]

Legend: T rows, N heads of q and k together, D head dim. x `[T, N, D]` of any float dtype and any
strides along T and N (the first heads of a fused q, k, v projection), unit stride along D;
positions int64 `[T]`; table `[max_len, 2, D / 2]` (`weft_kernels.rotary.create_rotary_table`),
float32 or x's dtype; weight `[N, D]` of x's dtype, the norms of q's heads, then those of k's. All
arithmetic is float32, and x is rounded once. Rows of the table are looked up here, not gathered.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.configs import Config, Launch, Shape, TuningSpace, get_config, listed_configs


def rotate_heads(
    x_TND: Tensor,
    positions_T: Tensor,
    table: Tensor,
    weight_ND: Tensor | None = None,
    eps: float = 0.0,
    *,
    config: Config | None = None,
) -> Tensor:
    """x, changed in place."""
    _check(x_TND, positions_T, table, weight_ND)
    num_rows, num_heads, width = x_TND.shape
    if num_rows == 0:
        return x_TND
    config = config or get_config("rotary", width=width)
    block_rows = config["BLOCK_ROWS"]
    _rotary_kernel[(triton.cdiv(num_rows * num_heads, block_rows),)](
        x_TND, positions_T, table, weight_ND,
        num_rows * num_heads, num_heads, eps, x_TND.stride(0), x_TND.stride(1),
        HALF=width // 2, BLOCK_H=triton.next_power_of_2(width // 2), BLOCK_ROWS=block_rows,
        num_warps=config["num_warps"], num_stages=config["num_stages"],
    )  # fmt: skip
    return x_TND


def _check(x_TND: Tensor, positions_T: Tensor, table: Tensor, weight_ND: Tensor | None) -> None:
    if x_TND.dim() != 3 or x_TND.stride(-1) != 1 or x_TND.shape[-1] % 2:
        raise ValueError("x must be [T, N, D] with an even D and unit stride along it")
    num_rows, num_heads, width = x_TND.shape
    if positions_T.shape != (num_rows,) or positions_T.dtype is not torch.int64:
        raise ValueError(f"positions must be int64 [{num_rows}], one for each row of x")
    if table.dim() != 3 or table.shape[1:] != (2, width // 2) or not table.is_contiguous():
        raise ValueError(
            f"table must be contiguous [max_len, 2, {width // 2}], not {tuple(table.shape)}"
        )
    if weight_ND is not None and (
        weight_ND.shape != (num_heads, width)
        or weight_ND.dtype != x_TND.dtype
        or not weight_ND.is_contiguous()
    ):
        raise ValueError(
            f"weight must be contiguous [{num_heads}, {width}] of {x_TND.dtype}, "
            f"not {tuple(weight_ND.shape)} of {weight_ND.dtype}"
        )


@triton.jit
def _rotary_kernel(
    x_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    table_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    num_rows: tl.tensor,
    num_heads: tl.tensor,
    eps: tl.tensor,
    stride_t: tl.tensor,
    stride_n: tl.tensor,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
) -> None:
    """Each program turns BLOCK_ROWS heads, of one row or of several, both halves in registers."""
    rows_R = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = rows_R < num_rows
    tokens_R = rows_R // num_heads
    heads_R = rows_R % num_heads
    columns_H = tl.arange(0, BLOCK_H)
    mask = is_row[:, None] & (columns_H < HALF)[None, :]

    x_at = tokens_R.to(tl.int64) * stride_t + heads_R.to(tl.int64) * stride_n
    first_ptrs = x_ptr + x_at[:, None] + columns_H[None, :]
    first = tl.load(first_ptrs, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(first_ptrs + HALF, mask=mask, other=0.0).to(tl.float32)
    positions_R = tl.load(positions_ptr + tokens_R, mask=is_row, other=0)
    cos_ptrs = table_ptr + (positions_R * (2 * HALF))[:, None] + columns_H[None, :]
    cos = tl.load(cos_ptrs, mask=mask, other=0.0).to(tl.float32)
    sin = tl.load(cos_ptrs + HALF, mask=mask, other=0.0).to(tl.float32)

    if weight_ptr is not None:
        squares = tl.sum(first * first + second * second, axis=1)
        inverse = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
        weight_ptrs = weight_ptr + (heads_R * (2 * HALF))[:, None] + columns_H[None, :]
        first *= inverse * tl.load(weight_ptrs, mask=mask, other=0.0).to(tl.float32)
        second *= inverse * tl.load(weight_ptrs + HALF, mask=mask, other=0.0).to(tl.float32)

    dtype = x_ptr.dtype.element_ty
    tl.store(first_ptrs, (first * cos - second * sin).to(dtype), mask=mask)
    tl.store(first_ptrs + HALF, (second * cos + first * sin).to(dtype), mask=mask)


def aot_variants() -> list[AotVariant]:
    """Every configuration, with and without the heads' norms; the table in float32."""
    signature = {
        "x_ptr": "*bf16", "positions_ptr": "*i64", "table_ptr": "*fp32", "weight_ptr": "*bf16",
        "num_rows": "i32", "num_heads": "i32", "eps": "fp32", "stride_t": "i32", "stride_n": "i32",
    }  # fmt: skip
    variants = []
    for shape, config in listed_configs("rotary"):
        half = shape["width"] // 2
        blocks = {"HALF": half, "BLOCK_H": half, "BLOCK_ROWS": config["BLOCK_ROWS"]}
        for form in ("plain", "norm"):
            variants.append(
                AotVariant(
                    name=f"rotary/{form}-d{shape['width']}",
                    kernel=_rotary_kernel,
                    signature=signature,
                    constants=blocks | ({"weight_ptr": None} if form == "plain" else {}),
                    divisible_by_16=[n for n, t in signature.items() if t[0] == "*"]
                    + ["stride_t", "stride_n"],
                    num_warps=config["num_warps"],
                    num_stages=config["num_stages"],
                )
            )
    return variants


def _candidates(shape: Shape) -> list[Config]:
    return [
        {"BLOCK_ROWS": rows, "num_warps": warps, "num_stages": 1}
        for rows in (2, 4, 8, 16, 32)
        for warps in (1, 2, 4, 8)
        # an 8-element load of each half for each thread at least, and four of them at most
        if 16 * 32 * warps <= rows * shape["width"] <= 64 * 32 * warps
    ]


def _create_launch(shape: Shape, device: torch.device) -> Callable[[Config], Launch]:
    """64 rows of Qwen3-30B-A3B's 32 + 4 heads with norms, of a projection that holds v, too."""
    width = shape["width"]
    qkv = torch.randn(64, 40, width, device=device).to(torch.bfloat16)
    weight = torch.ones(36, width, dtype=torch.bfloat16, device=device)
    table = torch.randn(4096, 2, width // 2, device=device)
    positions = torch.randint(0, 4096, (64,), device=device)
    return lambda config: (
        lambda: rotate_heads(qkv[:, :36], positions, table, weight, 1e-6, config=config)
    )


TUNING = TuningSpace(
    operator="rotary",
    shapes=[{"width": 64}, {"width": 128}],
    candidates=_candidates,
    create_launch=_create_launch,
)
