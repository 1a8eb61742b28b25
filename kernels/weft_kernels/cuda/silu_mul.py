"""SwiGLU's gate (Shazeer 2020): silu of the gate half times the up half, in one pass.

    y[t] = silu(g[t]) * u[t],  [g | u] = gate_up[t],  silu(g) = g / (1 + exp(-g))

Legend: T rows, I width. gate_up `[T, 2 I]`, contiguous rows, any float dtype; y `[T, I]`, the same
dtype. float32 arithmetic, rounded once. torch takes two launches for it and moves silu(g) twice
more.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.configs import Config, Launch, Shape, TuningSpace, get_config, listed_configs


def silu_mul(gate_up: Tensor, *, out: Tensor | None = None, config: Config | None = None) -> Tensor:
    """y, in `out` where given."""
    if gate_up.dim() != 2 or gate_up.shape[1] % 2 or gate_up.stride(1) != 1:
        raise ValueError("gate_up must be [T, 2 I] with unit stride along the last dimension")
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    if out is None:
        out = torch.empty(num_rows, width, dtype=gate_up.dtype, device=gate_up.device)
    if out.shape != (num_rows, width) or out.dtype != gate_up.dtype or out.stride(1) != 1:
        raise ValueError(
            f"out must be [{num_rows}, {width}] of {gate_up.dtype} with unit stride, "
            f"not {tuple(out.shape)} of {out.dtype}"
        )
    if num_rows == 0 or width == 0:
        return out
    config = config or get_config("silu_mul", width=width)
    # rows on the first axis: the others end at 65,535 programs
    _silu_mul_kernel[(num_rows, triton.cdiv(width, config["BLOCK_I"]))](
        gate_up, out, width, gate_up.stride(0), out.stride(0),
        BLOCK_I=config["BLOCK_I"],
        num_warps=config["num_warps"], num_stages=config["num_stages"],
    )  # fmt: skip
    return out


@triton.jit
def _silu_mul_kernel(
    gate_up_ptr: tl.tensor,
    out_ptr: tl.tensor,
    width: tl.tensor,
    gate_up_stride: tl.tensor,
    out_stride: tl.tensor,
    BLOCK_I: tl.constexpr,
) -> None:
    """Each program makes BLOCK_I columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    mask = columns < width
    gate_ptrs = gate_up_ptr + row * gate_up_stride + columns
    gate = tl.load(gate_ptrs, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_ptrs + width, mask=mask, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    out_ptrs = out_ptr + row * out_stride + columns
    tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=mask)


def aot_variants() -> list[AotVariant]:
    """Every configuration."""
    return [
        AotVariant(
            name=f"silu_mul/i{shape['width']}",
            kernel=_silu_mul_kernel,
            signature={"gate_up_ptr": "*bf16", "out_ptr": "*bf16"}
            | dict.fromkeys(("width", "gate_up_stride", "out_stride"), "i32"),
            constants={"BLOCK_I": config["BLOCK_I"]},
            divisible_by_16=["gate_up_ptr", "out_ptr", "width", "gate_up_stride", "out_stride"],
            num_warps=config["num_warps"],
            num_stages=config["num_stages"],
        )
        for shape, config in listed_configs("silu_mul")
    ]


def _candidates(shape: Shape) -> list[Config]:
    return [
        {"BLOCK_I": block, "num_warps": warps, "num_stages": 1}
        for block in (256, 512, 1024, 2048, 4096)
        for warps in (1, 2, 4, 8, 16)
        if 8 * 32 * warps <= block <= 32 * 32 * warps
    ]


def _create_launch(shape: Shape, device: torch.device) -> Callable[[Config], Launch]:
    """64 rows, as in a decode step."""
    gate_up = torch.randn(64, 2 * shape["width"], device=device).to(torch.bfloat16)
    out = torch.empty(64, shape["width"], dtype=torch.bfloat16, device=device)
    return lambda config: lambda: silu_mul(gate_up, out=out, config=config)


TUNING = TuningSpace(
    operator="silu_mul",
    shapes=[{"width": width} for width in (768, 6144, 14336)],
    candidates=_candidates,
    create_launch=_create_launch,
)
