"""SwiGLU's gate (Shazeer 2020): silu of the gate half times the up half."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def silu_mul(gate_up: Tensor) -> Tensor:
    """`y = silu(g) * u` with `[g | u] = gate_up`.

    gate_up: `[T, 2 I]`; y: `[T, I]`, the same dtype.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)
