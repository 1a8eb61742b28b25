"""The lengths of a weight's rows under an adapter: what DoRA divides its magnitudes by.

    n[o] = || W[:, o] + s * sum_r B[r, o] A[r] ||
    n^2  = ||W_o||^2 + 2 s B (A W^T) + s^2 B (A A^T) B^T,  row by row

(Liu et al. 2024, section 4.3). The adapted matrix is never formed: beside W there are R rows. Where
the terms nearly cancel, their sum would be left with few digits, and where they are huge it would
overflow: such rows are computed as they stand.

Legend: I in, O out, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

# the rounding of float32 is below 1e-5 of the sum, down to this share of its first term
_CANCELLED = 0.01
# of W at a time: W as it is served may be all that fits the device
_MAX_ELEMENTS = 4 * 1024 * 1024


def adapted_row_norms(w_IO: Tensor, a_RI: Tensor, b_RO: Tensor, scale: float) -> Tensor:
    """n, float32 `[O]`; w_IO `[I, O]` of any float dtype, a_RI `[R, I]`, b_RO `[R, O]`, float32 and
    on one device."""
    width = max(1, _MAX_ELEMENTS // w_IO.shape[0])
    own_RR = scale**2 * (a_RI @ a_RI.t())
    parts = zip(torch.split(w_IO, width, dim=1), torch.split(b_RO, width, dim=1), strict=True)
    return torch.cat([_norms(w, a_RI, own_RR, b, scale) for w, b in parts])


def _norms(w_IO: Tensor, a_RI: Tensor, own_RR: Tensor, b_RO: Tensor, scale: float) -> Tensor:
    wide_IO = w_IO.float()
    squares_O = torch.linalg.vector_norm(wide_IO, dim=0).square_()
    terms_RO = (a_RI @ wide_IO).mul_(2 * scale).addmm_(own_RR, b_RO).mul_(b_RO)
    total_O = squares_O + terms_RO.sum(0)
    norms_O: Tensor = total_O.sqrt()
    # a sum that is not finite is none of either kind
    good_O = (total_O >= _CANCELLED * squares_O) & total_O.isfinite()
    few = (~good_O).nonzero().flatten()
    if len(few):
        few_IN = w_IO.index_select(1, few).double()
        few_IN += scale * (a_RI.t().double() @ b_RO.index_select(1, few).double())
        norms_O[few] = torch.linalg.vector_norm(few_IN, dim=0).float()
    return norms_O
