"""From logits to tokens, for all rows of a step at once.

A row's random number is a hash of (seed, position) and nothing else, so a request gives the same
tokens alone, in any batch, after a preemption and on any device (up to near-ties of the logits).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from weft.engine.req import Req

_LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny


def seed_of(req: Req) -> int:
    """The request's seed, or one made from its id: 64 bits."""
    if req.request.sampling.seed is not None:
        return req.request.sampling.seed & 0xFFFFFFFFFFFFFFFF
    return int.from_bytes(hashlib.sha256(req.request_id.encode()).digest()[:8], "little")


def uniform(
    seeds: Sequence[int], positions: Sequence[int]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """`u[i]` in [0, 1) from (seeds[i], positions[i]): SplitMix64 (Steele, Lea & Flood 2014)."""
    with np.errstate(over="ignore"):
        z = _mix(np.array(seeds, dtype=np.uint64)) + np.array(positions, dtype=np.uint64)
        z = _mix(z + np.uint64(0x9E3779B97F4A7C15))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(
    z: np.ndarray[tuple[int], np.dtype[np.uint64]],
) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def sample(logits_NV: Tensor, reqs: Sequence[Req]) -> list[int | None]:
    """The next token of each request; None where its logits are not finite.

    logits_NV float32 `[N, V]`. Temperature, then top-k, then top-p, as transformers does.
    """
    finite = torch.isfinite(logits_NV).all(dim=1)
    tokens = logits_NV.argmax(dim=1)
    drawn = [i for i, req in enumerate(reqs) if req.request.sampling.temperature > 0]
    if drawn:
        rows = torch.tensor(drawn, device=logits_NV.device)
        picked = _draw(logits_NV.index_select(0, rows), [reqs[i] for i in drawn])
        tokens.index_copy_(0, rows, picked)
    pairs = zip(tokens.tolist(), finite.tolist(), strict=True)
    return [token if ok else None for token, ok in pairs]


def _draw(logits_NV: Tensor, reqs: Sequence[Req]) -> Tensor:
    """Inverse-CDF draw from the filtered distribution: int64 `[N]`."""
    device = logits_NV.device
    sampling = [req.request.sampling for req in reqs]
    vocab = logits_NV.shape[1]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

    # a temperature near 0 would overflow: subtract the maximum first; one that float32 rounds to 0
    # would divide 0 by 0
    shifted = logits_NV - logits_NV.amax(dim=1, keepdim=True)
    temperature = column([s.temperature for s in sampling]).clamp_(min=_LEAST_TEMPERATURE)
    sorted_NV, index_NV = (shifted / temperature).sort(dim=1, descending=True, stable=True)
    probs = sorted_NV.softmax(dim=1)
    ranks = torch.arange(vocab, device=device)[None]
    top_k = torch.tensor([min(s.top_k or vocab, vocab) for s in sampling], device=device)[:, None]
    probs = torch.where(ranks < top_k, probs, 0.0)
    probs = probs / probs.sum(dim=1, keepdim=True)
    before = probs.cumsum(dim=1) - probs
    top_p = column([s.top_p for s in sampling])
    probs = torch.where((before < top_p) | (top_p >= 1.0) | (ranks == 0), probs, 0.0).double()
    cdf = probs.cumsum(dim=1)
    u = uniform([seed_of(r) for r in reqs], [len(r.token_ids) for r in reqs])
    target = torch.from_numpy(u).to(device)[:, None] * cdf[:, -1:]
    place = torch.searchsorted(cdf, target, right=True).clamp_(max=vocab - 1)
    return index_NV.gather(1, place)[:, 0]
