"""Steps captured as CUDA graphs: a launch of one step is one call, whatever is in it.

A graph is the very code that runs otherwise, recorded for one layout. It reads its metadata from
the same place in every replay, and all grids are sized by the layout alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weft.engine.step_inputs import StepLayout


@dataclass(frozen=True, slots=True)
class StepOutput:
    """logits_NV float32 `[N, V]`; picked_2N int32 `[2, N]`: the tokens and what became of each row
    (`weft_kernels.cuda.sample`), good until the next step runs. vocab_sizes: how many tokens each
    row has, None: V."""

    logits_NV: Tensor
    picked_2N: Tensor
    vocab_sizes: Sequence[int] | None = None


Compute = Callable[[StepLayout], StepOutput]


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """A layout that can be run at once; what `replay` gives is good until the next replay."""

    layout: StepLayout
    replay: Callable[[], StepOutput]


@dataclass(slots=True)
class StepGraphs:
    """Captured steps by number of rows and reach. `stream` is None on a CPU, which has no graphs:
    there a captured step is the code itself, with the same layout."""

    compute: Compute
    stream: torch.cuda.Stream | None
    _captured: dict[tuple[int, int], CapturedStep] = field(default_factory=dict)
    _pool: Any = None

    def find(self, num_rows: int, reach: int) -> CapturedStep | None:
        """The one with the fewest rows that holds as many."""
        sizes = [size for size, kind in self._captured if kind == reach and size >= num_rows]
        return self._captured[min(sizes), reach] if sizes else None

    def capture(self, layout: StepLayout) -> None:
        """The device must hold a step of this layout, which is run. To be called for large layouts
        first, so that small ones take their memory from what those have."""
        self._captured[layout.num_rows, layout.reach] = CapturedStep(layout, self._record(layout))

    def _record(self, layout: StepLayout) -> Callable[[], StepOutput]:
        if self.stream is None:
            return lambda: self.compute(layout)
        self.compute(layout)  # kernels are compiled and small tables copied here
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # another thread may load an adapter meanwhile
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"
        ):
            output = self.compute(layout)

        def replay() -> StepOutput:
            graph.replay()
            return output

        return replay
