"""The draw of a token from the weights that are kept, in the order of the vocabulary."""

from __future__ import annotations

import triton
import triton.language as tl

from weft_kernels.cuda.sample_radix_select import load_keys, to_weights


@triton.jit
def _mix(z: tl.tensor) -> tl.tensor:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def uniform(seed: tl.tensor, position: tl.tensor) -> tl.tensor:
    """u in [0, 1), float64, from two integers."""
    z = _mix(seed.to(tl.uint64, bitcast=True)) + position.to(tl.uint64, bitcast=True)
    z = _mix(z + 0x9E3779B97F4A7C15)
    return (z >> 11).to(tl.float64) * (1.0 / 9007199254740992.0)


@triton.jit
def _kept_weights(
    row_ptr: tl.tensor,
    ids: tl.tensor,
    vocab: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    most: tl.tensor,
    worst: tl.tensor,
    last_tie: tl.tensor,
) -> tl.tensor:
    keys = load_keys(row_ptr, ids, vocab, best, temperature, most)
    is_kept = (keys < worst) | ((keys == worst) & (ids <= last_tie))
    return tl.where(is_kept, to_weights(keys), 0.0).to(tl.float64)


@triton.jit
def draw(
    row_ptr: tl.tensor,
    vocab: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    most: tl.tensor,
    worst: tl.tensor,
    last_tie: tl.tensor,
    u: tl.tensor,
    BLOCK_V: tl.constexpr,
    NUM_STAGES: tl.constexpr,
) -> tl.tensor:
    """The block in which the weights, in the order of the vocabulary, cross u times their sum, and
    then the token in it."""
    ids_V = tl.arange(0, BLOCK_V)
    sum_V = tl.zeros([BLOCK_V], tl.float64)
    for start in tl.range(0, vocab, BLOCK_V, num_stages=NUM_STAGES):
        sum_V += _kept_weights(
            row_ptr, start + ids_V, vocab, best, temperature, most, worst, last_tie
        )
    goal = u * tl.sum(sum_V, axis=0)
    start = 0
    before = tl.zeros([], tl.float64)
    block = 0
    block_before = tl.zeros([], tl.float64)
    while (start < vocab) & (before <= goal):
        weights = _kept_weights(
            row_ptr, start + ids_V, vocab, best, temperature, most, worst, last_tie
        )
        weight = tl.sum(weights, axis=0)
        # where rounding leaves the goal beyond the last token, that one is drawn
        if weight > 0.0:
            block = start
            block_before = before
        before += weight
        start += BLOCK_V
    ids = block + ids_V
    weights = _kept_weights(row_ptr, ids, vocab, best, temperature, most, worst, last_tie)
    is_past = (block_before + tl.cumsum(weights, axis=0) > goal) & (weights > 0.0)
    first = tl.min(tl.where(is_past, ids, vocab), axis=0)
    last = tl.max(tl.where(weights > 0.0, ids, -1), axis=0)
    return tl.where(first < vocab, first, last)
