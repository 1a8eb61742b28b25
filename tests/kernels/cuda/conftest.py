"""Triton's interpreter where there is no CUDA device, and what the kernels' tests run on.

Triton decides when a kernel is decorated whether it is compiled or interpreted, so the choice is
made here, before any test of this folder imports one.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tests.kernels.cuda.interpreter import hasten

IS_INTERPRETED = not torch.cuda.is_available()


def _interpret() -> None:
    early = sorted(name for name in sys.modules if _has_compiled_kernels(name))
    if early:
        raise RuntimeError(f"imported before the interpreter was chosen: {', '.join(early)}")
    was_imported = "triton.language" in sys.modules
    os.environ["TRITON_INTERPRET"] = "1"
    if was_imported:
        # xgrammar imports Triton, whose own functions (sum, zeros, ...) were then decorated to be
        # compiled
        for name in ("standard", "random"):
            importlib.reload(sys.modules[f"triton.language.{name}"])
        importlib.reload(sys.modules["triton.language"])
    hasten()


def _has_compiled_kernels(module: str) -> bool:
    return module.startswith("weft_kernels.cuda.") and any(
        type(value).__name__ == "JITFunction" for value in vars(sys.modules[module]).values()
    )


if IS_INTERPRETED:
    _interpret()

# bfloat16 arithmetic is silently wrong under the interpreter
ROUNDED_DTYPES = [torch.float16] + ([] if IS_INTERPRETED else [torch.bfloat16])


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if IS_INTERPRETED else "cuda")


@pytest.fixture(
    params=[torch.float32, *ROUNDED_DTYPES], ids=lambda dtype: str(dtype).removeprefix("torch.")
)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    value = request.param
    assert isinstance(value, torch.dtype)
    return value


@pytest.fixture(autouse=True)
def _device_arithmetic() -> Iterator[None]:
    """The interpreter computes with numpy, which warns where a device does not: of infinities and
    NaN, which tests put into what must not count, and of scalars that are arrays of one element."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.filterwarnings(
            "ignore", "Conversion of an array with ndim > 0", DeprecationWarning
        )
        yield
