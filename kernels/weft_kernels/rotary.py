"""Rotary position embedding (Su et al. 2021) in the half-split form of the Hugging Face models, and
the ways of reaching contexts longer than those trained on: linear (Chen et al. 2023), YaRN (Peng et
al. 2023), Llama 3's (Grattafiori et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rope:
    """theta, and how frequencies are scaled by `factor`; what a kind does not read is ignored.

    default: not at all. linear: all of them. llama3: those with fewer than `low_freq_factor` turns
    in `original_max_len` positions, none with more than `high_freq_factor`, a blend between. yarn:
    the same with `beta_slow` and `beta_fast`, blended over the index of the frequency, between
    whole indices with `truncate`. cos and sin are multiplied by `attention_factor`.
    """

    theta: float
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    original_max_len: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_slow: float = 1.0
    beta_fast: float = 32.0
    truncate: bool = True
    attention_factor: float = 1.0


def create_rotary_table(max_len: int, head_dim: int, rope: Rope, device: torch.device) -> Tensor:
    """cos and sin of every position, times the attention factor: float32 `[max_len, 2, D / 2]`.

    Angle `(p, i) = p * f(i)`, where `f(i) = theta^(-2i / D)` before scaling and D = head_dim.
    """
    angles = torch.outer(torch.arange(max_len, dtype=torch.float32), _frequencies(head_dim, rope))
    table = torch.stack((angles.cos(), angles.sin()), dim=1) * rope.attention_factor
    return table.to(device)


def _frequencies(head_dim: int, rope: Rope) -> Tensor:
    """float32 `[D / 2]`, in the order of operations of the models' own code."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    plain = 1.0 / (rope.theta**exponents)
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / rope.factor
    kept = _kept_by_turns(plain, rope) if rope.kind == "llama3" else _kept_by_index(head_dim, rope)
    return plain / rope.factor * (1 - kept) + plain * kept


def _kept_by_turns(plain: Tensor, rope: Rope) -> Tensor:
    """llama3: the share of each frequency that stays as it is."""
    turns = rope.original_max_len * plain / (2 * math.pi)
    share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return share.clamp(0, 1)


def _kept_by_index(head_dim: int, rope: Rope) -> Tensor:
    """yarn: as `_kept_by_turns`, with a ramp over the index of the frequency."""

    def index_at(turns: float) -> float:
        wavelength = rope.original_max_len / turns / (2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    first, last = index_at(rope.beta_fast), index_at(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
        last += 0.001
    index = torch.arange(head_dim // 2, dtype=torch.float32)
    return 1 - ((index - first) / (last - first)).clamp(0, 1)


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """Rotate each head: with `x = [x1 | x2]`, `y = [x1 cos - x2 sin | x2 cos + x1 sin]`.

    x: `[T, num_heads, head_dim]`; table: `[T, 2, head_dim / 2]`, the rows of
    `create_rotary_table` at each token's position, in x's dtype; y: as x.
    """
    cos, sin = table[:, None, 0], table[:, None, 1]
    y = torch.empty_like(x)
    (x1, x2), (y1, y2) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
    torch.mul(x1, cos, out=y1).addcmul_(x2, sin, value=-1)
    torch.mul(x2, cos, out=y2).addcmul_(x1, sin)
    return y
