"""Mixture of experts: routing, grouped GEMMs over tokens sorted by expert, and expert adapters.

    y[t] = sum_k w[t, k] * down_e(silu(gate_e(x[t])) * up_e(x[t])),   e = top-k experts of x[t]

(Shazeer et al. 2017; the softmax-then-top-k router of Mixtral and Qwen.) Rows are (token, expert)
*pairs* sorted by expert, so an expert's weights are read once. Adapters of experts are applied to
the pairs, grouped by (slot, expert). No loop runs over experts, tokens or adapters, and no sum
depends on thread order.

Legend: T tokens, K experts per token, E experts, P = T K pairs, H hidden, F expert width, S slots,
R padded rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from weft_kernels.activation import silu_mul
from weft_kernels.grouped import grouped_mm
from weft_kernels.lora import LoraBatch, PackedSites, RankGroup
from weft_kernels.quantized import QuantizedMatrix
from weft_kernels.row_vectors import SlotVectors, VectorRows, apply_vectors_


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """router_HE `[H, E]`; gate_up_EHF `[E, H, 2 F]`, gate first; down_EFH `[E, F, H]`."""

    router_HE: Tensor
    gate_up_EHF: Tensor
    down_EFH: Tensor


@dataclass(frozen=True, slots=True)
class QuantizedExperts:
    """The same with experts of few bits; the router stays as it was trained."""

    router_HE: Tensor
    gate_up_EHF: QuantizedMatrix
    down_EFH: QuantizedMatrix


@dataclass(frozen=True, slots=True)
class Pairs:
    """(token, expert) pairs sorted by expert: token_P, ends_E, and where pair (t, k) went."""

    token_P: Tensor
    ends_E: Tensor
    position_TK: Tensor
    expert_TK: Tensor


def route(logits_TE: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """Softmax over all experts in float32, then the top k.

    logits_TE `[T, E]`; returns weights float32 `[T, K]` and experts int64 `[T, K]`, best first;
    with `renormalize` the k weights sum to one (`norm_topk_prob`).
    """
    weights_TK, experts_TK = logits_TE.float().softmax(-1).topk(top_k, dim=-1)
    if renormalize:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    return weights_TK, experts_TK


def _sort_pairs(experts_TK: Tensor, num_experts: int) -> Pairs:
    order_P = experts_TK.flatten().argsort(stable=True)
    position_P = torch.empty_like(order_P)
    position_P[order_P] = torch.arange(order_P.numel(), device=order_P.device)
    return Pairs(
        token_P=order_P // experts_TK.shape[1],
        ends_E=_count_ends(experts_TK.flatten(), num_experts),
        position_TK=position_P.view_as(experts_TK),
        expert_TK=experts_TK,
    )


def _count_ends(groups: Tensor, num_groups: int) -> Tensor:
    """Cumulative counts of the values 0 .. num_groups - 1: int32 `[num_groups]`."""
    counts = torch.zeros(num_groups, dtype=torch.int64, device=groups.device)
    counts.scatter_add_(0, groups, torch.ones_like(groups))
    return counts.cumsum(0).to(torch.int32)


def expert_mm(x_PI: Tensor, w_EIO: Tensor | QuantizedMatrix, ends_E: Tensor) -> Tensor:
    """`y[p] = x[p] w[e]` for pairs sorted by expert: expert e ends before row `ends_E[e]`.

    x_PI `[P, I]`; w_EIO `[E, I, O]`; ends_E int32 `[E]`; y `[P, O]`. Quantized experts are
    dequantized here, the min(P, E) first ones of those in use and then the idle: which are in use
    is not known without waiting for the device. That saves memory and costs time.
    """
    if isinstance(w_EIO, Tensor):
        return grouped_mm(x_PI, w_EIO, ends_E)
    counts_E = ends_E.diff(prepend=ends_E.new_zeros(1))
    used_U = (counts_E == 0).int().argsort(stable=True)[: max(1, x_PI.shape[0])]
    ends_U = counts_E.index_select(0, used_U).cumsum(0).to(torch.int32)
    return grouped_mm(x_PI, w_EIO.select(used_U).dense(), ends_U)


@dataclass(frozen=True, slots=True)
class _Units:
    """The pairs of a rank group's rows: unit_Q int64, (slot, expert) of each as slot * E + expert,
    and position_Q int64, its place among the pairs. Sorted by unit where `ends_U` says where each
    unit ends; None: about one pair per unit, and their weights are gathered instead."""

    rank: int
    num_slots: int
    unit_Q: Tensor
    position_Q: Tensor
    ends_U: Tensor | None

    def select(self, packed: Tensor) -> Tensor:
        """`[S, E, ...]` by unit, of the pairs or of all units."""
        units = packed[: self.num_slots].flatten(0, 1)
        return units if self.ends_U is not None else units.index_select(0, self.unit_Q)

    def multiply(self, x_QI: Tensor, w: Tensor) -> Tensor:
        """Each pair by its unit's matrix `[I, O]`, of those that `select` gives: `[Q, O]`."""
        if self.ends_U is not None:
            return grouped_mm(x_QI, w, self.ends_U)
        return torch.bmm(x_QI[:, None], w)[:, 0]


def _create_units(group: RankGroup, pairs: Pairs, num_experts: int) -> _Units:
    expert_NK = pairs.expert_TK.index_select(0, group.rows_N)
    unit_Q = (group.slots_N[:, None] * num_experts + expert_NK).flatten()
    position_Q = pairs.position_TK.index_select(0, group.rows_N).flatten()
    num_units = group.num_slots * num_experts
    if unit_Q.numel() <= num_units:
        return _Units(group.rank, group.num_slots, unit_Q, position_Q, None)
    order_Q = unit_Q.argsort(stable=True)
    unit_Q, position_Q = unit_Q[order_Q], position_Q[order_Q]
    ends_U = _count_ends(unit_Q, num_units)
    return _Units(group.rank, group.num_slots, unit_Q, position_Q, ends_U)


def _add_(
    ys: Sequence[Tensor], x_PI: Tensor, sites: Sequence[PackedSites], groups: Sequence[_Units]
) -> None:
    """Add the adapters' part to pair rows, in place.

    ys[k] `[P, O_k]`; x_PI `[P, I]`; sites[k] by rank: a `[S, E, R, I]`, b `[S, E, R, O_k]`, all
    parts of one joint tensor or none.
    """
    for units in groups:
        rank = units.rank
        touched = [(y, s[rank]) for y, s in zip(ys, sites, strict=True) if rank in s]
        if not touched:
            continue
        x_QI = x_PI.index_select(0, units.position_Q)
        joint = touched[0][1].joint_SKI
        if joint is not None:
            h_QK = units.multiply(x_QI, units.select(joint).transpose(1, 2))
        for y, site in touched:
            if joint is None:
                h_QR = units.multiply(x_QI, units.select(site.a_SRI).transpose(1, 2))
            else:
                h_QR = h_QK[:, site.first : site.first + rank]
            delta = units.multiply(h_QR, units.select(site.b_SRO))
            y.index_add_(0, units.position_Q, delta)  # no place is there twice


class PairAdapters(Protocol):
    """What one layer's pairs do to what their experts compute, in place."""

    def add_gate_up_(self, gate_up_PF: Tensor, x_PH: Tensor) -> None: ...

    def add_down_(self, out_PH: Tensor, act_PF: Tensor) -> None: ...


class ExpertAdapters(Protocol):
    """The adapters of one layer's experts."""

    def for_pairs(self, pairs: Pairs, num_experts: int) -> PairAdapters: ...


@dataclass(frozen=True, slots=True)
class ExpertVectors:
    """Row scales and biases of one layer's experts, `[S, E, 2 F]` and `[S, E, H]`, None where no
    adapter has any, and the tokens of those that have."""

    rows: VectorRows
    gate_up: SlotVectors | None
    down: SlotVectors | None

    def for_pairs(self, pairs: Pairs, num_experts: int) -> ExpertVectors:
        """The same by pair instead of token, and by (slot, expert) instead of slot."""
        expert_NK = pairs.expert_TK.index_select(0, self.rows.rows_N)
        unit_NK = self.rows.slots_N[:, None] * num_experts + expert_NK
        position_NK = pairs.position_TK.index_select(0, self.rows.rows_N)
        by_expert = (v if v is None else v.by_expert() for v in (self.gate_up, self.down))
        return ExpertVectors(VectorRows(position_NK.flatten(), unit_NK.flatten()), *by_expert)


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """Adapters of experts packed as `[S, E, R, ...]`: `sites` = gate, up and down by rank."""

    sites: Sequence[PackedSites]
    batch: LoraBatch
    vectors: ExpertVectors | None = None

    def for_pairs(self, pairs: Pairs, num_experts: int) -> PairAdapters:
        ranks = {rank for site in self.sites for rank in site}
        groups = [
            _create_units(group, pairs, num_experts)
            for group in self.batch.groups
            if group.rank in ranks
        ]
        vectors = None if self.vectors is None else self.vectors.for_pairs(pairs, num_experts)
        return _PackedPairs(self.sites, groups, vectors)


@dataclass(frozen=True, slots=True)
class _PackedPairs:
    sites: Sequence[PackedSites]
    groups: Sequence[_Units]
    vectors: ExpertVectors | None

    def add_gate_up_(self, gate_up_PF: Tensor, x_PH: Tensor) -> None:
        if any(self.sites[:2]):
            _add_(gate_up_PF.chunk(2, dim=1), x_PH, self.sites[:2], self.groups)
        if self.vectors is not None and self.vectors.gate_up is not None:
            apply_vectors_(gate_up_PF, self.vectors.rows, self.vectors.gate_up)

    def add_down_(self, out_PH: Tensor, act_PF: Tensor) -> None:
        if self.sites[2]:
            _add_([out_PH], act_PF, self.sites[2:], self.groups)
        if self.vectors is not None and self.vectors.down is not None:
            apply_vectors_(out_PH, self.vectors.rows, self.vectors.down)


def moe(
    x_TH: Tensor,
    weights: ExpertWeights | QuantizedExperts,
    top_k: int,
    renormalize: bool,
    adapters: ExpertAdapters | None = None,
    logits_TE: Tensor | None = None,
) -> Tensor:
    """The whole block, as the module's equation says: x_TH `[T, H]` -> `[T, H]`, the same dtype.

    logits_TE: the router's `[T, E]` where they are not `x router_HE`, as under adapters of it.
    """
    logits_TE = x_TH @ weights.router_HE if logits_TE is None else logits_TE
    weights_TK, experts_TK = route(logits_TE, top_k, renormalize)
    pairs = _sort_pairs(experts_TK, weights.router_HE.shape[1])
    own = None if adapters is None else adapters.for_pairs(pairs, weights.router_HE.shape[1])
    x_PH = x_TH.index_select(0, pairs.token_P)
    gate_up_PF = expert_mm(x_PH, weights.gate_up_EHF, pairs.ends_E)
    if own is not None:
        own.add_gate_up_(gate_up_PF, x_PH)
    act_PF = silu_mul(gate_up_PF)
    out_PH = expert_mm(act_PF, weights.down_EFH, pairs.ends_E)
    if own is not None:
        own.add_down_(out_PH, act_PF)
    picked_PH = out_PH.index_select(0, pairs.position_TK.flatten())
    picked_TKH = picked_PH.view(*experts_TK.shape, x_TH.shape[1])
    return (picked_TKH * weights_TK[:, :, None].to(out_PH.dtype)).sum(1)
