"""The engine on the kernels of CUDA devices: interpreted where there is no such device."""

from __future__ import annotations

# to import it is to choose the interpreter, before any kernel is imported
from tests.kernels.cuda.conftest import IS_INTERPRETED, _device_arithmetic, device

__all__ = ["IS_INTERPRETED", "_device_arithmetic", "device"]
