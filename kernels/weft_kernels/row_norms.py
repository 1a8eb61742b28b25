"""The lengths of a weight's rows under an adapter: what DoRA divides its magnitudes by.

    n[o] = || W[:, o] + s * sum_r B[r, o] A[r] ||
    n^2  = ||W_o||^2 + 2 s B (A W^T) + s^2 B (A A^T) B^T,  row by row

(Liu et al. 2024, section 4.3). The adapted matrix is never formed: beside W there are R rows. Where
the terms nearly cancel, their sum would be left with few digits, and the row is computed as it
stands.

Legend: I in, O out, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

# the rounding of float32 is below 1e-5 of the sum, down to this share of its first term
_CANCELLED = 0.01


def adapted_row_norms(w_IO: Tensor, a_RI: Tensor, b_RO: Tensor, scale: float) -> Tensor:
    """n, float32 `[O]`; w_IO `[I, O]` of any float dtype, a_RI `[R, I]`, b_RO `[R, O]`, float32 and
    on one device."""
    wide_IO = w_IO.float()
    squares_O: Tensor = torch.linalg.vector_norm(wide_IO, dim=0).square_()
    own_RO = (a_RI @ a_RI.t()) @ b_RO
    cross_RO = a_RI @ wide_IO
    terms_RO = cross_RO.mul_(2 * scale).add_(own_RO, alpha=scale**2).mul_(b_RO)
    total_O = squares_O + terms_RO.sum(0)
    cancelled = (total_O < _CANCELLED * squares_O).nonzero().flatten()
    if len(cancelled):
        few_IN = w_IO.index_select(1, cancelled).double()
        few_IN += scale * (a_RI.t().double() @ b_RO.index_select(1, cancelled).double())
        total_O[cancelled] = few_IN.square().sum(0).float()
    return total_O.sqrt_()
