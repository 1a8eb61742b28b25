"""From logits to tokens on the device, every row with parameters of its own, without a sort.

For a row of logits x, with m = max x:

    s[v]  = (x[v] - m) / temperature                   dropped where s < log(min_p)
    order = s descending, of equals the lower v first
    kept  = the first top_k of the order, and of those as long as the weight exp(s) of all better
            ones is below top_p times their sum
    token = the least v with sum_{i <= v} p[i] > u sum p,  p = exp(s) where kept, else 0

u in [0, 1) is a hash of (seed, position) and of nothing else: SplitMix64 (Steele, Lea & Flood 2014)
over `mix(seed) + position`. So a row gives the same token alone, in any batch and after a
preemption. With temperature 0 the token is the first of the largest logits.

Legend: N rows, V vocabulary. logits `[N, V]` of any float dtype, unit stride along V; sums of
weights are float64, weights float32. A row with a NaN or an infinity is flagged and gets token 0,
and so is a row of -inf only, which a mask made.

Each program takes one row. It reads it once for the maximum, once for the sum of weights, and once
or twice to draw; top-k and top-p search for the least score that is kept, bit by bit, among the few
scores that a first cut leaves, so the row itself is not read again. torch has good kernels for each
step, but needs a sort of the vocabulary for top-p: some milliseconds for 64 rows of 150,000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.configs import Config, Launch, Shape, TuningSpace, get_config, listed_configs

OK = 0
NOT_FINITE = 1
NOTHING_ALLOWED = 2

_OK = tl.constexpr(OK)
_NOT_FINITE = tl.constexpr(NOT_FINITE)
_NOTHING_ALLOWED = tl.constexpr(NOTHING_ALLOWED)
# the bits of float32's infinity
_INFINITE = tl.constexpr(0x7F800000)


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """The parameters of each row, on the device, all `[N]`.

    seeds int64, the 64 bits of an unsigned seed; positions int64; temperatures float32, 0 for the
    best token; top_ks int32, 0 for all; top_ps float32, 1 for all; min_ps float32, 0 for all.
    """

    seeds: Tensor
    positions: Tensor
    temperatures: Tensor
    top_ks: Tensor
    top_ps: Tensor
    min_ps: Tensor


_DTYPES = {
    "seeds": torch.int64,
    "positions": torch.int64,
    "temperatures": torch.float32,
    "top_ks": torch.int32,
    "top_ps": torch.float32,
    "min_ps": torch.float32,
}


def sample(
    logits_NV: Tensor,
    rows: SamplingRows | None = None,
    is_masked_N: Tensor | None = None,
    *,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """Tokens int64 `[N]` and what became of each row int32 `[N]`: OK, NOT_FINITE, NOTHING_ALLOWED.

    Without `rows` every row gets its best token. is_masked_N, bool `[N]`: where -inf stands for a
    token that is not allowed, as a grammar's mask or a bias leaves it, and not for a fault.
    """
    _check(logits_NV, rows, is_masked_N)
    num_rows, vocab = logits_NV.shape
    device = logits_NV.device
    tokens_N = torch.empty(num_rows, dtype=torch.int64, device=device)
    status_N = torch.empty(num_rows, dtype=torch.int32, device=device)
    if num_rows == 0:
        return tokens_N, status_N
    config = config or get_config("sample", vocab=vocab)
    # what the first cut leaves of a row; touched only as far as it is used
    keys_NV = None
    if rows is not None:
        keys_NV = torch.empty(num_rows, vocab, dtype=torch.int32, device=device)
    parameters = (None,) * len(_DTYPES) if rows is None else [getattr(rows, n) for n in _DTYPES]
    _sample_kernel[(num_rows,)](
        logits_NV, tokens_N, status_N, is_masked_N, *parameters, keys_NV,
        vocab, logits_NV.stride(0),
        BLOCK_V=config["BLOCK_V"], BLOCK_K=config["BLOCK_K"],
        num_warps=config["num_warps"], NUM_STAGES=config["num_stages"],
    )  # fmt: skip
    return tokens_N, status_N


def _check(logits_NV: Tensor, rows: SamplingRows | None, is_masked_N: Tensor | None) -> None:
    if logits_NV.dim() != 2 or logits_NV.stride(1) != 1 or logits_NV.shape[1] == 0:
        raise ValueError("logits must be [N, V] with V above 0 and unit stride along it")
    num_rows = logits_NV.shape[0]
    given: list[tuple[str, Tensor, torch.dtype]] = []
    if rows is not None:
        given += [(f.name, getattr(rows, f.name), _DTYPES[f.name]) for f in fields(rows)]
    if is_masked_N is not None:
        given.append(("is_masked", is_masked_N, torch.bool))
    for name, tensor, dtype in given:
        if tensor.shape != (num_rows,) or tensor.dtype is not dtype or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous [{num_rows}] of {dtype}, "
                f"not {tuple(tensor.shape)} of {tensor.dtype}"
            )


@triton.jit
def _mix(z: tl.tensor) -> tl.tensor:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def _uniform(seed: tl.tensor, position: tl.tensor) -> tl.tensor:
    """u in [0, 1), float64, from two integers."""
    z = _mix(seed.to(tl.uint64, bitcast=True)) + position.to(tl.uint64, bitcast=True)
    z = _mix(z + 0x9E3779B97F4A7C15)
    return (z >> 11).to(tl.float64) * (1.0 / 9007199254740992.0)


@triton.jit
def _keys(
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
def _weights(keys: tl.tensor) -> tl.tensor:
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
    probe = tl.minimum(probe, _INFINITE - 1)
    total_K = tl.zeros([BLOCK_K], tl.int32 if IS_COUNT else tl.float64)
    for start in range(0, num_keys, BLOCK_K):
        offsets = start + tl.arange(0, BLOCK_K)
        keys = tl.load(keys_ptr + offsets, mask=offsets < num_keys, other=_INFINITE)
        is_in = keys <= probe
        if IS_COUNT:
            total_K += is_in.to(tl.int32)
        else:
            total_K += tl.where(is_in, _weights(keys), 0.0)
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
    return tl.minimum(least, _INFINITE)


@triton.jit
def _find_best(
    row_ptr: tl.tensor,
    is_masked: tl.tensor,
    vocab: tl.tensor,
    BLOCK_V: tl.constexpr,
    NUM_STAGES: tl.constexpr,
) -> tl.tensor:
    """The largest logit, its first place, and the row's status."""
    ids_V = tl.arange(0, BLOCK_V)
    best_V = tl.full([BLOCK_V], float("-inf"), tl.float32)
    place_V = tl.zeros([BLOCK_V], tl.int32)
    fault_V = tl.zeros([BLOCK_V], tl.int32)
    for start in tl.range(0, vocab, BLOCK_V, num_stages=NUM_STAGES):
        ids = start + ids_V
        x = tl.load(row_ptr + ids, mask=ids < vocab, other=0.0).to(tl.float32)
        is_fault = (x != x) | (x == float("inf")) | ((x == float("-inf")) & (is_masked == 0))
        fault_V |= is_fault.to(tl.int32)
        is_better = (x > best_V) & (ids < vocab)
        best_V = tl.where(is_better, x, best_V)
        place_V = tl.where(is_better, ids, place_V)
    best = tl.max(best_V, axis=0)
    place = tl.min(tl.where(best_V == best, place_V, vocab), axis=0)
    status = tl.where(best == float("-inf"), _NOTHING_ALLOWED, _OK)
    return best, place, tl.where(tl.max(fault_V, axis=0) > 0, _NOT_FINITE, status)


@triton.jit
def _cut(
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
        keys = _keys(row_ptr, start + ids_V, vocab, best, temperature, most)
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
        keys = _keys(row_ptr, start + ids_V, vocab, best, temperature, most)
        is_near = (keys.to(tl.float32, bitcast=True) <= cut) & (keys < _INFINITE)
        is_near_int = is_near.to(tl.int32)
        places = num_keys + tl.cumsum(is_near_int, axis=0) - 1
        tl.store(keys_ptr + places, keys, mask=is_near)
        num_keys += tl.sum(is_near_int, axis=0)
    tl.debug_barrier()  # the program's threads read what others of them wrote
    return num_keys, total


@triton.jit
def _keep(
    keys_ptr: tl.tensor,
    num_keys: tl.tensor,
    total: tl.tensor,
    vocab: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """The worst key that is kept, how many of its equals are, and how many there are."""
    worst = tl.zeros([], tl.int32) + _INFINITE
    num_ties = vocab
    if top_k < vocab:
        worst = _least_key(keys_ptr, num_keys, top_k, True, BLOCK_K)
        num_ties = top_k - _up_to(keys_ptr, num_keys, worst - 1, True, BLOCK_K)
        total = _up_to(keys_ptr, num_keys, worst - 1, False, BLOCK_K)
        total += num_ties.to(tl.float64) * _weights(worst)
    if top_p < 1.0:
        # the best is kept whatever top_p is
        target = tl.maximum(top_p * total, 1e-300)
        reached = _least_key(keys_ptr, num_keys, target, False, BLOCK_K)
        missing = target - _up_to(keys_ptr, num_keys, reached - 1, False, BLOCK_K)
        needed = tl.maximum(tl.ceil(missing / _weights(reached).to(tl.float64)), 1.0)
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
def _place_of_tie(
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
        keys = _keys(row_ptr, ids, vocab, best, temperature, most)
        is_tie = ((keys == worst) & (ids < vocab)).to(tl.int32)
        seen = num_seen + tl.cumsum(is_tie, axis=0)
        is_last = (seen == num_ties) & (is_tie > 0)
        place = tl.minimum(place, tl.min(tl.where(is_last, ids, vocab), axis=0))
        num_seen += tl.sum(is_tie, axis=0)
    return place


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
    keys = _keys(row_ptr, ids, vocab, best, temperature, most)
    is_kept = (keys < worst) | ((keys == worst) & (ids <= last_tie))
    return tl.where(is_kept, _weights(keys), 0.0).to(tl.float64)


@triton.jit
def _draw(
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


@triton.jit
def _sample_kernel(
    logits_ptr: tl.tensor,
    tokens_ptr: tl.tensor,
    status_ptr: tl.tensor,
    is_masked_ptr: tl.tensor,
    seeds_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    temperatures_ptr: tl.tensor,
    top_ks_ptr: tl.tensor,
    top_ps_ptr: tl.tensor,
    min_ps_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    vocab: tl.tensor,
    stride: tl.tensor,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    is_masked = 0
    if is_masked_ptr is not None:
        is_masked = tl.load(is_masked_ptr + row).to(tl.int32)
    best, token, status = _find_best(row_ptr, is_masked, vocab, BLOCK_V, NUM_STAGES)
    tl.store(status_ptr + row, status)
    if temperatures_ptr is not None:
        temperature = tl.load(temperatures_ptr + row)
        if (status == 0) & (temperature > 0.0):
            # one that float32 rounds to 0 would divide 0 by 0
            temperature = tl.maximum(temperature, 1.1754943508222875e-38)
            most = -tl.log(tl.load(min_ps_ptr + row))
            top_k = tl.load(top_ks_ptr + row)
            top_k = tl.where(top_k > 0, tl.minimum(top_k, vocab), vocab)
            top_p = tl.load(top_ps_ptr + row).to(tl.float64)
            worst = tl.zeros([], tl.int32) + _INFINITE
            last_tie = vocab
            if (top_k < vocab) | (top_p < 1.0):
                row_keys_ptr = keys_ptr + row * vocab
                num_keys, total = _cut(
                    row_ptr, row_keys_ptr, vocab, best, temperature, most, top_k, top_p,
                    BLOCK_V, NUM_STAGES,
                )  # fmt: skip
                worst, num_ties, num_equal = _keep(
                    row_keys_ptr, num_keys, total, vocab, top_k, top_p, BLOCK_K
                )
                if num_ties < num_equal:
                    last_tie = _place_of_tie(
                        row_ptr, vocab, best, temperature, most, worst, num_ties, BLOCK_V
                    )
            u = _uniform(tl.load(seeds_ptr + row), tl.load(positions_ptr + row))
            token = _draw(
                row_ptr, vocab, best, temperature, most, worst, last_tie, u, BLOCK_V, NUM_STAGES
            )
    tl.store(tokens_ptr + row, tl.where(status == 0, token, 0).to(tl.int64))


def aot_variants() -> list[AotVariant]:
    """Every configuration, greedy alone and with all parameters, on float32 and bfloat16 logits."""
    parameters = {
        "seeds_ptr": "*i64", "positions_ptr": "*i64", "temperatures_ptr": "*fp32",
        "top_ks_ptr": "*i32", "top_ps_ptr": "*fp32", "min_ps_ptr": "*fp32", "keys_ptr": "*i32",
    }  # fmt: skip
    variants = []
    for shape, config in listed_configs("sample"):
        for form in ("greedy", "drawn"):
            for dtype in ("fp32", "bf16"):
                signature = {
                    "logits_ptr": f"*{dtype}", "tokens_ptr": "*i64", "status_ptr": "*i32",
                    "is_masked_ptr": "*i1", **parameters, "vocab": "i32", "stride": "i32",
                }  # fmt: skip
                absent = dict.fromkeys(parameters) if form == "greedy" else {}
                variants.append(
                    AotVariant(
                        name=f"sample/{form}-{dtype}-v{shape['vocab']}",
                        kernel=_sample_kernel,
                        signature=signature,
                        constants=absent
                        | {"BLOCK_V": config["BLOCK_V"], "BLOCK_K": config["BLOCK_K"]}
                        | {"NUM_STAGES": config["num_stages"]},
                        divisible_by_16=list(signature),
                        num_warps=config["num_warps"],
                        num_stages=config["num_stages"],
                    )
                )
    return variants


def _candidates(shape: Shape) -> list[Config]:
    return [
        {"BLOCK_V": block, "BLOCK_K": 1024, "num_warps": warps, "num_stages": stages}
        for block in (2048, 4096, 8192)
        for warps in (8, 16, 32)
        for stages in (1, 2, 3)
        if 8 * 32 * warps <= block <= 16 * 32 * warps
    ]


def _create_launch(shape: Shape, device: torch.device) -> Callable[[Config], Launch]:
    """64 rows, half of them with top-p, spread like a language model's."""
    logits = 3.0 * torch.randn(64, shape["vocab"], device=device)
    half = torch.arange(64, device=device) % 2
    rows = SamplingRows(
        seeds=torch.arange(64, device=device),
        positions=torch.full((64,), 100, device=device),
        temperatures=torch.full((64,), 0.8, device=device),
        top_ks=torch.zeros(64, dtype=torch.int32, device=device),
        top_ps=torch.where(half > 0, 0.95, 1.0),
        min_ps=torch.zeros(64, device=device),
    )
    return lambda config: lambda: sample(logits, rows, config=config)


TUNING = TuningSpace(
    operator="sample",
    shapes=[{"vocab": 128256}, {"vocab": 151936}],
    candidates=_candidates,
    create_launch=_create_launch,
)
