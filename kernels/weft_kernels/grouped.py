"""One GEMM per group over rows sorted by group.

    y[n] = x[n] w[g(n)]

Legend: N rows, G groups, I in, O out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# CUDA's grouped_mm sets up its groups in one block of 1024 threads
MAX_GROUPS_PER_CALL = 1023


def grouped_mm(x_NI: Tensor, w_GIO: Tensor, ends_G: Tensor) -> Tensor:
    """`y[n] = x[n] w[g]` for rows sorted by group: group g ends before row `ends_G[g]`.

    x_NI `[N, I]`, w_GIO `[G, I, O]`, ends_G int32 `[G]` with `ends_G[-1] == N`; y `[N, O]`.
    """
    whole = 16 // x_NI.element_size()
    num_in, num_out = w_GIO.shape[1:]
    if num_in % whole or num_out % whole:
        # torch takes rows of whole 16 bytes only; slow, but of a real base only a shared expert's
        # gate, one column wide, comes here
        x_NI = functional.pad(x_NI, (0, -num_in % whole))
        w_GIO = functional.pad(w_GIO, (0, -num_out % whole, 0, -num_in % whole))
        return grouped_mm(x_NI, w_GIO, ends_G)[:, :num_out]
    if w_GIO.shape[0] <= MAX_GROUPS_PER_CALL or x_NI.device.type == "cpu":
        return functional.grouped_mm(x_NI, w_GIO, offs=ends_G)
    return grouped_mm_in_calls(x_NI, w_GIO, ends_G, MAX_GROUPS_PER_CALL)


def grouped_mm_in_calls(x_NI: Tensor, w_GIO: Tensor, ends_G: Tensor, num_groups: int) -> Tensor:
    """As `grouped_mm`, in calls of at most `num_groups` groups; waits for the device."""
    outs = []
    start = 0
    for g in range(0, w_GIO.shape[0], num_groups):
        ends = ends_G[g : g + num_groups]
        stop = int(ends[-1])
        part = w_GIO[g : g + num_groups]
        if stop > start:
            outs.append(functional.grouped_mm(x_NI[start:stop], part, offs=ends - start))
        start = stop
    return torch.cat(outs) if outs else x_NI.new_zeros(0, w_GIO.shape[2])
