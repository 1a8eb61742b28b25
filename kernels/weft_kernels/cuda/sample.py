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

from dataclasses import dataclass, fields

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.configs import Config, get_config, listed_configs
from weft_kernels.cuda.sample_draw import draw, uniform
from weft_kernels.cuda.sample_radix_select import (
    INFINITE,
    collect_candidates,
    find_last_tie,
    find_threshold,
)

OK = 0
NOT_FINITE = 1
NOTHING_ALLOWED = 2

_OK = tl.constexpr(OK)
_NOT_FINITE = tl.constexpr(NOT_FINITE)
_NOTHING_ALLOWED = tl.constexpr(NOTHING_ALLOWED)


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
            worst = tl.zeros([], tl.int32) + INFINITE
            last_tie = vocab
            if (top_k < vocab) | (top_p < 1.0):
                row_keys_ptr = keys_ptr + row * vocab
                num_keys, total = collect_candidates(
                    row_ptr, row_keys_ptr, vocab, best, temperature, most, top_k, top_p,
                    BLOCK_V, NUM_STAGES,
                )  # fmt: skip
                worst, num_ties, num_equal = find_threshold(
                    row_keys_ptr, num_keys, total, vocab, top_k, top_p, BLOCK_K
                )
                if num_ties < num_equal:
                    last_tie = find_last_tie(
                        row_ptr, vocab, best, temperature, most, worst, num_ties, BLOCK_V
                    )
            u = uniform(tl.load(seeds_ptr + row), tl.load(positions_ptr + row))
            token = draw(
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
