"""torch's operations on the calling thread alone.

A second thread that computes with several has OpenMP keep a second team of threads; with more of
them than cores every parallel region of the engine's own thread sleeps and wakes, and its steps
take twice as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def on_this_thread_alone() -> Iterator[None]:
    """How many threads torch uses is a setting of each thread: those that have computed in parallel
    before keep theirs. What a thread begins with is the setting that was made last, so that one
    which begins just then computes alone, too, until it is told otherwise."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
