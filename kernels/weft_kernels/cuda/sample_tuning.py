"""What the tuning command may try for the sampler, on rows spread like a language model's."""

from __future__ import annotations

from collections.abc import Callable

import torch

from weft_kernels.cuda.configs import Config, Launch, Shape, TuningSpace
from weft_kernels.cuda.sample import SamplingRows, sample


def _candidates(shape: Shape) -> list[Config]:
    return [
        {"BLOCK_V": block, "BLOCK_K": 1024, "num_warps": warps, "num_stages": stages}
        for block in (2048, 4096, 8192)
        for warps in (8, 16, 32)
        for stages in (1, 2, 3)
        if 8 * 32 * warps <= block <= 16 * 32 * warps
    ]


def _create_launch(shape: Shape, device: torch.device) -> Callable[[Config], Launch]:
    """64 rows, half of them with top-p, spread like a language model's."""
    logits = 3.0 * torch.randn(64, shape["vocab"], device=device)
    half = torch.arange(64, device=device) % 2
    rows = SamplingRows(
        seeds=torch.arange(64, device=device),
        positions=torch.full((64,), 100, device=device),
        temperatures=torch.full((64,), 0.8, device=device),
        top_ks=torch.zeros(64, dtype=torch.int32, device=device),
        top_ps=torch.where(half > 0, 0.95, 1.0),
        min_ps=torch.zeros(64, device=device),
    )
    return lambda config: lambda: sample(logits, rows, config=config)


TUNING = TuningSpace(
    operator="sample",
    shapes=[{"vocab": 128256}, {"vocab": 151936}],
    candidates=_candidates,
    create_launch=_create_launch,
)
