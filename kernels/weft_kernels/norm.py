"""Root-mean-square normalisation (Zhang & Sennrich 2019), as Llama and Qwen use it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`y = x / sqrt(mean(x^2, -1) + eps) * weight`.

    x: `[..., D]` any float dtype; weight: `[D]`, the same dtype; y: as x.
    The mean is taken in float32 or better.
    """
    return functional.rms_norm(x, (x.shape[-1],), weight, eps)
