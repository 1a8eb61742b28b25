"""The small operators, at the widths of Llama-3-8B and Qwen3-30B-A3B."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from benchmarks.gpu.harness import Case, Setting, relative_error

from weft_kernels import norm, reference
from weft_kernels.cuda.configs import Launch, get_config
from weft_kernels.cuda.rms_norm import rms_norm

EPS = 1e-6


def cases(setting: Setting) -> Iterator[Case]:
    tokens = (3,) if setting.is_tiny else (1, 8, 64, 256, 2048)
    for width in (16,) if setting.is_tiny else (2048, 4096):
        for num_tokens in tokens:
            yield _rms_norm(setting, num_tokens, width)


def _rms_norm(setting: Setting, num_tokens: int, width: int) -> Case:
    """With the residual's addition, in place on x."""

    def inputs() -> list[torch.Tensor]:
        shapes = ((num_tokens, width), (num_tokens, width), (width,))
        return [torch.randn(shape, device=setting.device).to(setting.dtype) for shape in shapes]

    def create() -> Launch:
        x, delta, weight = inputs()
        # the same x grows by delta at every launch, and stays finite
        return lambda: rms_norm(x, weight, EPS, delta)

    def create_torch() -> Launch:
        x, delta, weight = inputs()
        return lambda: norm.rms_norm(x.add_(delta), weight, EPS)

    def error() -> float:
        x, delta, weight = inputs()
        want = reference.rms_norm(x + delta, weight, EPS)
        return relative_error(rms_norm(x, weight, EPS, delta), want)

    return Case(
        "rms_norm",
        {"tokens": num_tokens, "width": width},
        create,
        # reads x, delta and the weight; writes x and y
        useful_bytes=(4 * num_tokens + 1) * width * setting.dtype.itemsize,
        error=error,
        config=get_config("rms_norm", width=width),
        peers={"torch: add, rms_norm": create_torch},
    )
