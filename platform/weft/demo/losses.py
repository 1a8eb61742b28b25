"""The three training losses, from logits and router logits alone.

Knows no model and no data. Shapes: B windows, T tokens, V vocabulary, N = B*T rows, E experts,
K experts chosen per row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

BALANCE_COEFFICIENT = 1e-2  # Fedus et al. 2021, section 2.2
Z_COEFFICIENT = 1e-3  # Zoph et al. 2022, section 3.1


@dataclass(frozen=True)
class RouterLosses:
    """Means over the layers; `load_LE` is the share of assignments that each expert got."""

    balance: Tensor
    z: Tensor
    load_LE: Tensor


def language_loss(logits_BTV: Tensor, targets_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """Cross-entropy, weighted per token."""
    losses = functional.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="none"
    )
    weights = weights_BT.flatten()
    return (losses * weights).sum() / weights.sum().clamp_min(1.0)


def balance_loss(router_logits_NE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Switch Transformer's E * sum(f_e * P_e), and f (Fedus et al. 2021, equations 4 to 6).

    f_e is the share of the N*K assignments that expert e got, P_e its mean router probability.
    It is 1 when both are uniform.
    """
    probs_NE = router_logits_NE.float().softmax(dim=-1)
    chosen_NK = probs_NE.topk(top_k, dim=-1).indices
    num_experts = probs_NE.shape[-1]
    load_E = torch.bincount(chosen_NK.flatten(), minlength=num_experts) / chosen_NK.numel()
    return num_experts * (load_E * probs_NE.mean(dim=0)).sum(), load_E


def z_loss(router_logits_NE: Tensor) -> Tensor:
    """ST-MoE's mean of logsumexp squared, which keeps router logits small (Zoph et al. 2022)."""
    return router_logits_NE.float().logsumexp(dim=-1).square().mean()


def router_losses(router_logits: Sequence[Tensor], top_k: int) -> RouterLosses:
    """Both router losses, averaged over layers."""
    balances, loads = zip(*(balance_loss(logits, top_k) for logits in router_logits), strict=True)
    return RouterLosses(
        balance=torch.stack(balances).mean(),
        z=torch.stack([z_loss(logits) for logits in router_logits]).mean(),
        load_LE=torch.stack(loads),
    )
