"""The devices that operators are tested on, and how near to their twins they must come."""

from __future__ import annotations

from typing import Any

import pytest
import torch

torch.set_num_threads(1)


_DEVICES: list[Any] = ["cpu"]
if torch.cuda.is_available():
    _DEVICES.append(pytest.param("cuda", marks=pytest.mark.gpu))


@pytest.fixture(params=_DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def generator() -> torch.Generator:
    """Draws the same numbers on every device: tensors are made on the CPU and moved."""
    return torch.Generator().manual_seed(0)
