"""Root-mean-square normalisation (Zhang & Sennrich 2019), as Llama and Qwen use it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`y = x / sqrt(mean(x^2, -1) + eps) * weight`.

    x: `[..., D]` any float dtype; weight: `[D]`, or one for each of x's last but one dimension
    `[N, D]`, the same dtype; y: as x.
    The mean is taken in float32 or better.
    """
    if x.device.type != "cpu" or x.dtype is not torch.float32:
        if weight.dim() > 1:
            return functional.rms_norm(x, (x.shape[-1],), None, eps) * weight
        return functional.rms_norm(x, (x.shape[-1],), weight, eps)
    # torch composes it on a CPU, of twice as many passes
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse: Tensor = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * inverse).mul_(weight)
