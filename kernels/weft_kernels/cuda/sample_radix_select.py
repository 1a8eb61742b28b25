"""Which scores top-k and top-p keep, found by radix selection instead of a sort.

A score is never above 0, so the bits of -score, read as an integer, are in the order of the scores:
its *key*, the less the better. The worst key that is kept is found from its highest bit down, each
bit by one pass that counts the keys below it, or adds their weights up. `collect_candidates` leaves
few keys to pass over; `find_threshold` finds the worst; of its equals the first ids are kept, up to
`find_last_tie`.
"""

from __future__ import annotations

import triton
import triton.language as tl

# the bits of float32's infinity
INFINITE = tl.constexpr(0x7F800000)


@triton.jit
def load_keys(
    row_ptr: tl.tensor,
    ids: tl.tensor,
    vocab: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    most: tl.tensor,
) -> tl.tensor:
    """Bits of -score, which is never negative: the less, the better; infinite where not to draw."""
    x = tl.load(row_ptr + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32)
    distance = tl.abs(tl.div_rn(x - best, temperature))
    return tl.where(distance > most, float("inf"), distance).to(tl.int32, bitcast=True)


@triton.jit
def to_weights(keys: tl.tensor) -> tl.tensor:
    """exp(score), float32."""
    return tl.exp(-keys.to(tl.float32, bitcast=True))


@triton.jit
def _up_to(
    keys_ptr: tl.tensor,
    num_keys: tl.tensor,
    probe: tl.tensor,
    IS_COUNT: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """How many keys are at most `probe`, int32, or the sum of their weights, float64."""
    # none of the keys is infinite; what is loaded beyond them is, and is never in
    probe = tl.minimum(probe, INFINITE - 1)
    total_K = tl.zeros([BLOCK_K], tl.int32 if IS_COUNT else tl.float64)
    for start in range(0, num_keys, BLOCK_K):
        offsets = start + tl.arange(0, BLOCK_K)
        keys = tl.load(keys_ptr + offsets, mask=offsets < num_keys, other=INFINITE)
        is_in = keys <= probe
        if IS_COUNT:
            total_K += is_in.to(tl.int32)
        else:
            total_K += tl.where(is_in, to_weights(keys), 0.0)
    return tl.sum(total_K, axis=0)


@triton.jit
def _least_key(
    keys_ptr: tl.tensor,
    num_keys: tl.tensor,
    target: tl.tensor,
    IS_COUNT: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """The least key up to which the keys are `target` or more, by count or by weight; infinite
    where all of them are less."""
    least = tl.zeros([], tl.int32)
    for step in range(31):
        bit = 1 << (30 - step)
        reached = _up_to(keys_ptr, num_keys, least | (bit - 1), IS_COUNT, BLOCK_K)
        least = tl.where(reached < target, least | bit, least)
    return tl.minimum(least, INFINITE)


@triton.jit
def collect_candidates(
    row_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    vocab: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    most: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    BLOCK_V: tl.constexpr,
    NUM_STAGES: tl.constexpr,
) -> tl.tensor:
    """Write the keys of the scores that top-k and top-p can keep, and some more, to `keys_ptr`;
    their number and the weight of all scores."""
    ids_V = tl.arange(0, BLOCK_V)
    total_V = tl.zeros([BLOCK_V], tl.float64)
    # weight and number of the scores within 4, 8 and 16 of the best; float32 is enough to decide
    # where to cut with room to spare
    weight4_V = tl.zeros([BLOCK_V], tl.float32)
    weight8_V = tl.zeros([BLOCK_V], tl.float32)
    weight16_V = tl.zeros([BLOCK_V], tl.float32)
    count4_V = tl.zeros([BLOCK_V], tl.int32)
    count8_V = tl.zeros([BLOCK_V], tl.int32)
    count16_V = tl.zeros([BLOCK_V], tl.int32)
    for start in tl.range(0, vocab, BLOCK_V, num_stages=NUM_STAGES):
        keys = load_keys(row_ptr, start + ids_V, vocab, best, temperature, most)
        distance = keys.to(tl.float32, bitcast=True)
        weight = tl.exp(-distance)
        total_V += weight
        weight4_V += tl.where(distance <= 4.0, weight, 0.0)
        weight8_V += tl.where(distance <= 8.0, weight, 0.0)
        weight16_V += tl.where(distance <= 16.0, weight, 0.0)
        count4_V += (distance <= 4.0).to(tl.int32)
        count8_V += (distance <= 8.0).to(tl.int32)
        count16_V += (distance <= 16.0).to(tl.int32)
    total = tl.sum(total_V, axis=0)
    least_weight = tl.where(top_k < vocab, 0.0, (top_p + 1e-4) * total)
    least_count = tl.where(top_k < vocab, top_k, 0)
    is_16 = (tl.sum(weight16_V, axis=0) >= least_weight) & (
        tl.sum(count16_V, axis=0) >= least_count
    )
    is_8 = (tl.sum(weight8_V, axis=0) >= least_weight) & (tl.sum(count8_V, axis=0) >= least_count)
    is_4 = (tl.sum(weight4_V, axis=0) >= least_weight) & (tl.sum(count4_V, axis=0) >= least_count)
    cut = tl.where(is_4, 4.0, tl.where(is_8, 8.0, tl.where(is_16, 16.0, float("inf"))))

    num_keys = 0
    for start in tl.range(0, vocab, BLOCK_V, num_stages=NUM_STAGES):
        keys = load_keys(row_ptr, start + ids_V, vocab, best, temperature, most)
        is_near = (keys.to(tl.float32, bitcast=True) <= cut) & (keys < INFINITE)
        is_near_int = is_near.to(tl.int32)
        places = num_keys + tl.cumsum(is_near_int, axis=0) - 1
        tl.store(keys_ptr + places, keys, mask=is_near)
        num_keys += tl.sum(is_near_int, axis=0)
    tl.debug_barrier()  # the program's threads read what others of them wrote
    return num_keys, total


@triton.jit
def find_threshold(
    keys_ptr: tl.tensor,
    num_keys: tl.tensor,
    total: tl.tensor,
    vocab: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """The worst key that is kept, how many of its equals are, and how many there are."""
    worst = tl.zeros([], tl.int32) + INFINITE
    num_ties = vocab
    if top_k < vocab:
        worst = _least_key(keys_ptr, num_keys, top_k, True, BLOCK_K)
        num_ties = top_k - _up_to(keys_ptr, num_keys, worst - 1, True, BLOCK_K)
        total = _up_to(keys_ptr, num_keys, worst - 1, False, BLOCK_K)
        total += num_ties.to(tl.float64) * to_weights(worst)
    if top_p < 1.0:
        # the best is kept whatever top_p is
        target = tl.maximum(top_p * total, 1e-300)
        reached = _least_key(keys_ptr, num_keys, target, False, BLOCK_K)
        missing = target - _up_to(keys_ptr, num_keys, reached - 1, False, BLOCK_K)
        needed = tl.maximum(tl.ceil(missing / to_weights(reached).to(tl.float64)), 1.0)
        num_needed = tl.minimum(needed, vocab.to(tl.float64)).to(tl.int32)
        if reached < worst:
            num_ties = num_needed
        elif reached == worst:
            num_ties = tl.minimum(num_ties, num_needed)
        worst = tl.minimum(worst, reached)
    num_equal = _up_to(keys_ptr, num_keys, worst, True, BLOCK_K)
    num_equal -= _up_to(keys_ptr, num_keys, worst - 1, True, BLOCK_K)
    return worst, num_ties, num_equal


@triton.jit
def find_last_tie(
    row_ptr: tl.tensor,
    vocab: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    most: tl.tensor,
    worst: tl.tensor,
    num_ties: tl.tensor,
    BLOCK_V: tl.constexpr,
) -> tl.tensor:
    """The place of the last of the first `num_ties` scores with the key `worst`."""
    ids_V = tl.arange(0, BLOCK_V)
    place = vocab
    num_seen = 0
    for start in range(0, vocab, BLOCK_V):
        ids = start + ids_V
        keys = load_keys(row_ptr, ids, vocab, best, temperature, most)
        is_tie = ((keys == worst) & (ids < vocab)).to(tl.int32)
        seen = num_seen + tl.cumsum(is_tie, axis=0)
        is_last = (seen == num_ties) & (is_tie > 0)
        place = tl.minimum(place, tl.min(tl.where(is_last, ids, vocab), axis=0))
        num_seen += tl.sum(is_tie, axis=0)
    return place
