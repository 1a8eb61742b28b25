"""The engine on the kernels of CUDA devices: interpreted where there is no such device."""

from __future__ import annotations

import pytest

# to import it is to choose the interpreter, before any kernel is imported
from tests.kernels.cuda.conftest import IS_INTERPRETED, _device_arithmetic, device

from weft.engine.graphs import CapturedStep, StepGraphs

__all__ = ["IS_INTERPRETED", "_device_arithmetic", "device"]


@pytest.fixture
def captured_steps(monkeypatch: pytest.MonkeyPatch) -> list[CapturedStep]:
    """The steps that ran as they were captured, in their order: by a graph on a device."""
    found: list[CapturedStep] = []
    find = StepGraphs.find

    def note(graphs: StepGraphs, num_rows: int, reach: int) -> CapturedStep | None:
        captured = find(graphs, num_rows, reach)
        if captured is not None:
            found.append(captured)
        return captured

    monkeypatch.setattr(StepGraphs, "find", note)
    return found
