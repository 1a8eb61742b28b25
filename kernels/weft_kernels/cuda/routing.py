"""Routing on the device: the top experts of each token.

    w[t, k], e[t, k] = the k-th largest of softmax(logits[t]) and where it is

Of equal logits the lower expert comes first, as in the twin; `torch.topk` promises no order. With
`renormalize` a token's weights sum to one (`norm_topk_prob`, Mixtral). Router columns from
`num_experts` on are *null experts* (AdaMoE): they take a place and a weight and run nothing. A row
that is no token (the padding of a graph's batch) has only null experts.

Legend: T tokens, K experts per token, E router columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant


def route(
    logits_TE: Tensor, top_k: int, renormalize: bool, num_tokens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights float32 `[T, K]` and experts int32 `[T, K]`, best first.

    logits_TE: `[T, E]`, null experts included, any float dtype. num_tokens: int32 `[1]`; rows from
    there on are no tokens: their weights are 0 and their experts E, which no router column is.
    """
    if logits_TE.dim() != 2 or logits_TE.stride(1) != 1:
        raise ValueError("logits must be [T, E] with unit stride along E")
    num_rows, num_columns = logits_TE.shape
    if not 1 <= top_k <= num_columns:
        raise ValueError(f"top_k must be 1 to {num_columns}, the router's columns, not {top_k}")
    weights_TK = torch.empty(num_rows, top_k, dtype=torch.float32, device=logits_TE.device)
    experts_TK = torch.empty(num_rows, top_k, dtype=torch.int32, device=logits_TE.device)
    if num_rows:
        _route_kernel[(num_rows,)](
            logits_TE, weights_TK, experts_TK, num_tokens, num_columns, logits_TE.stride(0),
            TOP_K=top_k, RENORMALIZE=renormalize, BLOCK_E=triton.next_power_of_2(num_columns),
            BLOCK_K=triton.next_power_of_2(top_k), num_warps=1, num_stages=1,
        )  # fmt: skip
    return weights_TK, experts_TK


@triton.jit
def _route_kernel(
    logits_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    experts_ptr: tl.tensor,
    num_tokens_ptr: tl.tensor,
    num_columns: tl.tensor,
    logits_stride: tl.tensor,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """A program takes one token."""
    t = tl.program_id(0).to(tl.int64)
    column_E = tl.arange(0, BLOCK_E)
    is_column_E = column_E < num_columns
    logit_E = tl.load(logits_ptr + t * logits_stride + column_E, mask=is_column_E, other=0.0)
    logit_E = tl.where(is_column_E, logit_E.to(tl.float32), float("-inf"))
    # whatever is not a number or masked out ranks below all others and above what was taken: a
    # token never has an expert twice
    least = -3.0e38
    rank_E = tl.where(logit_E > least, logit_E, least)
    rank_E = tl.where(is_column_E, rank_E, float("-inf"))
    top = tl.max(rank_E, axis=0)
    k_K = tl.arange(0, BLOCK_K)
    weight_K = tl.zeros([BLOCK_K], tl.float32)
    expert_K = tl.zeros([BLOCK_K], tl.int32)
    for k in tl.static_range(TOP_K):
        best = tl.argmax(rank_E, axis=0)
        logit = tl.sum(tl.where(column_E == best, logit_E, 0.0), axis=0)
        weight_K = tl.where(k_K == k, tl.exp(logit - top), weight_K)
        expert_K = tl.where(k_K == k, best, expert_K)
        rank_E = tl.where(column_E == best, float("-inf"), rank_E)
    total = tl.sum(weight_K if RENORMALIZE else tl.exp(logit_E - top), axis=0)
    weight_K = weight_K / total
    if num_tokens_ptr is not None:
        is_token = t < tl.load(num_tokens_ptr)
        weight_K = tl.where(is_token, weight_K, 0.0)
        expert_K = tl.where(is_token, expert_K, num_columns)
    at_K = t * TOP_K + k_K
    tl.store(weights_ptr + at_K, weight_K, mask=k_K < TOP_K)
    tl.store(experts_ptr + at_K, expert_K, mask=k_K < TOP_K)


def aot_variants() -> list[AotVariant]:
    """The routers of Qwen3-30B-A3B and Mixtral."""
    return [
        AotVariant(
            name=f"moe_route/e{num_experts}-k{top_k}",
            kernel=_route_kernel,
            signature={
                "logits_ptr": "*bf16", "weights_ptr": "*fp32", "experts_ptr": "*i32",
                "num_tokens_ptr": "*i32", "num_columns": "i32", "logits_stride": "i32",
            },
            constants={
                "TOP_K": top_k, "RENORMALIZE": True, "BLOCK_E": num_experts, "BLOCK_K": top_k,
            },
            divisible_by_16=["logits_ptr", "weights_ptr", "experts_ptr"],
            num_warps=1,
            num_stages=1,
            needs_vector_loads=False,  # a router's row is 2 to 8 bytes a lane
        )
        for num_experts, top_k in ((128, 8), (8, 2))
    ]  # fmt: skip
