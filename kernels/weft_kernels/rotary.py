"""Rotary position embedding (Su et al. 2021) in the half-split form of the Hugging Face models."""

from __future__ import annotations

import torch
from torch import Tensor


def create_rotary_table(max_len: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """cos and sin of every position: float32 `[max_len, 2, head_dim / 2]`.

    Angle `(p, i) = p * theta^(-2i / head_dim)`.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    inverse_frequencies = 1.0 / (theta**exponents)
    angles = torch.outer(torch.arange(max_len, dtype=torch.float32), inverse_frequencies)
    return torch.stack((angles.cos(), angles.sin()), dim=1).to(device)


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """Rotate each head: with `x = [x1 | x2]`, `y = [x1 cos - x2 sin | x2 cos + x1 sin]`.

    x: `[T, num_heads, head_dim]`; table: `[T, 2, head_dim / 2]`, the rows of
    `create_rotary_table` at each token's position, in x's dtype; y: as x.
    """
    cos, sin = table[:, None, 0], table[:, None, 1]
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)
