"""The device that a process of `make gpu` uses, from within that process and without a thought for
what runs on it: this is imported before kernels are, and before it is known who runs them."""

from __future__ import annotations

import sys


def is_lost() -> bool:
    """Whether an error, such as an illegal address, has left this process without its device: from
    then on each use raises it again."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:  # of every kind that CUDA has
        return True
    return False
