"""The devices that operators are tested on, and how near to their twins they must come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from weft_kernels.backend import Backend, create_backend
from weft_kernels.native.build import NativeBuildError, build

torch.set_num_threads(1)


def pytest_report_header() -> str:
    """Say what does not run here, instead of a line of skips for each test."""
    if torch.cuda.is_available():
        return f"CUDA: {torch.cuda.get_device_name()}"
    return "CUDA: no device, so operators are tested on the CPU only"


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


@pytest.fixture(params=["torch", "native", "native, 3 threads"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Those of the CPU, in float32."""
    name, _, threads = request.param.partition(", ")
    if name == "native":
        try:
            build()
        except NativeBuildError as error:
            pytest.skip(f"the native kernels are not tested: {error}")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(3 if threads else num_threads)
    yield create_backend(name, torch.device("cpu"), torch.float32)
    torch.set_num_threads(num_threads)
