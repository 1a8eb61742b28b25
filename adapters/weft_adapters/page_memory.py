"""The device memory under the page pool: values go in, and parts of it come and go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from weft_adapters.sites import Site
from weft_adapters.tensors import Float32
from weft_kernels.memory import Reserved, zeros

# torch runs an operation on more elements than this in parallel. A second thread that does so has
# OpenMP keep a second team of threads, and with more of them than cores every parallel region of
# the engine's own thread sleeps and wakes: its steps took twice as long.
_MAX_ELEMENTS_AT_ONCE = 32768


class PageMemory:
    """`memory` is flat. `is_lent`: on a CPU, none of it is there before it is committed."""

    def __init__(
        self, num_elements: int, dtype: torch.dtype, device: torch.device, *, is_lent: bool = False
    ) -> None:
        self._reserved = Reserved(num_elements, dtype=dtype) if is_lent else None
        self.memory: Tensor = (
            zeros(num_elements, dtype=dtype, device=device)
            if self._reserved is None
            else self._reserved.tensor
        )
        # numpy copies a few rows in a fraction of torch's time, and on the calling thread alone
        is_on_host = device.type == "cpu" and dtype == torch.float32
        self._host_array = self.memory.numpy() if is_on_host else None
        self._copy_stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copy_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # the memory is zeroed by the stream of this thread
            self._copy_stream.wait_stream(torch.cuda.current_stream(device))

    def commit(self, part: slice) -> None:
        """Have the memory of this part there, zeroed."""
        assert self._reserved is not None, "all of it is there"
        self._reserved.commit(part.start, part.stop)

    def release(self, part: slice) -> None:
        """Give the memory of this part back to the system; OSError where it does not take it."""
        assert self._reserved is not None, "all of it stays"
        self._reserved.release(part.start, part.stop)

    @contextmanager
    def copying(self) -> Iterator[None]:
        """What is copied within is there at the end; no step waits for it."""
        if self._copy_stream is None:
            yield
            return
        with torch.cuda.stream(self._copy_stream):
            yield
        # blocking: the thread sleeps, and keeps no core
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(self._copy_stream)
        done.synchronize()

    def copy(self, source: Float32, bounds: slice, what: Site | str) -> None:
        """Values to a part, and zeros after them: it may hold another adapter's. ValueError for
        values that the dtype cannot hold, naming `what` they are."""
        filled = slice(bounds.start, bounds.start + source.size)
        padding = slice(filled.stop, bounds.stop)
        if self._host_array is not None:
            self._host_array[filled].reshape(source.shape)[:] = source
            self._host_array[padding] = 0
            return
        target, part = self.memory[filled], torch.from_numpy(source).reshape(-1)
        for piece in _pieces(source.size, self.memory.device):
            target[piece].copy_(part[piece], non_blocking=True)
            if self.memory.dtype != torch.float32 and not torch.isfinite(target[piece]).all():
                raise ValueError(f"The weights of {what} are too large for {self.memory.dtype}.")
        self.memory[padding].zero_()


def _pieces(num_elements: int, device: torch.device) -> list[slice]:
    """Of a size that torch handles on the calling thread alone."""
    step = _MAX_ELEMENTS_AT_ONCE if device.type == "cpu" else max(1, num_elements)
    return [slice(i, min(i + step, num_elements)) for i in range(0, num_elements, step)]
