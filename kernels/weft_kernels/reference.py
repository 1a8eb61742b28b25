"""The operators' meaning, spelled out: naive float64 twins of every operator, the tests' oracle.

Plain loops over rows, heads, experts and adapters; nothing is packed, padded, sorted or bucketed.
Arguments name what a row means (its adapter, its token, its place), not how the fast operators lay
it out. Every function takes tensors of any float dtype, computes on the CPU in float64 and returns
float64.

The twins of the KV cache and of attention are in `reference_attention.py`.

Legend: T rows, I in, O out, R rank, H hidden, F expert width, E experts, K experts per token, D
head dim, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weft_kernels.rotary import Rope


def to_float64(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64)


@dataclass(frozen=True, slots=True)
class Lora:
    """One adapter at one site, as PEFT writes it: a_RI `[R, I]`, b_OR `[O, R]`, at true rank.

    row_scale_O `[O]`: DoRA's factor of each output, base included; bias_O `[O]`: the adapter's own.
    """

    a_RI: Tensor
    b_OR: Tensor
    scale: float
    row_scale_O: Tensor | None = None
    bias_O: Tensor | None = None

    def delta(self, x_I: Tensor) -> Tensor:
        """`s * B (A x)`."""
        return self.scale * (to_float64(self.b_OR) @ (to_float64(self.a_RI) @ x_I))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`y = x / sqrt(mean(x^2, -1) + eps) * weight`."""
    wide, out = to_float64(x).reshape(-1, x.shape[-1]), []
    for row in wide:
        mean = sum(float(v) ** 2 for v in row) / len(row)
        out.append(row / math.sqrt(mean + eps) * to_float64(weight))
    return torch.stack(out).view(x.shape) if out else to_float64(x)


def silu_mul(gate_up: Tensor) -> Tensor:
    """`y = silu(g) * u` with `[g | u] = gate_up`, `silu(g) = g / (1 + exp(-g))`."""
    width = gate_up.shape[-1] // 2
    gate, up = to_float64(gate_up[..., :width]), to_float64(gate_up[..., width:])
    return gate / (1.0 + (-gate).exp()) * up


def rotary_frequency(i: int, head_dim: int, rope: Rope) -> float:
    """`theta^(-2i / D)`, scaled as `Rope` says."""
    plain = math.pow(rope.theta, -2 * i / head_dim)
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        turns = rope.original_max_len * plain / (2 * math.pi)
        kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    else:
        # f(i) turns beta times in the original length where i = D / 2 log_theta(length / 2 pi beta)
        length = rope.original_max_len / (2 * math.pi)
        first = head_dim / 2 * math.log(length / rope.beta_fast, rope.theta)
        last = head_dim / 2 * math.log(length / rope.beta_slow, rope.theta)
        if rope.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        kept = 1 - (i - first) / (last - first or 0.001)
    kept = min(max(kept, 0.0), 1.0)
    return kept * plain + (1 - kept) * plain / rope.factor


def rotary(x: Tensor, positions: Sequence[int], rope: Rope) -> Tensor:
    """Each pair `(x[i], x[i + D/2])` turned by the angle `p * f(i)`, times the attention factor.

    x: `[T, num_heads, D]`; positions[t]: the token's place p.
    """
    wide, out = to_float64(x), to_float64(x).clone()
    half = x.shape[-1] // 2
    for t, position in enumerate(positions):
        for i in range(half):
            angle = position * rotary_frequency(i, x.shape[-1], rope)
            first, second = wide[t, :, i], wide[t, :, i + half]
            out[t, :, i] = first * math.cos(angle) - second * math.sin(angle)
            out[t, :, i + half] = second * math.cos(angle) + first * math.sin(angle)
    return out * rope.attention_factor


def _adapted(y_O: Tensor, x_I: Tensor, lora: Lora | None) -> Tensor:
    """`m (y + s B (A x)) + adapter_bias`, y where there is no adapter."""
    if lora is None:
        return y_O
    y_O = y_O + lora.delta(x_I)
    if lora.row_scale_O is not None:
        y_O = y_O * to_float64(lora.row_scale_O)
    return y_O if lora.bias_O is None else y_O + to_float64(lora.bias_O)


def adapted_linear(
    x_TI: Tensor,
    w_IO: Tensor,
    bias_O: Tensor | None,
    widths: Sequence[int],
    loras: Sequence[Sequence[Lora | None]],
) -> Tensor:
    """`y[t] = m (x[t] W + s B (A x[t])) + bias + adapter_bias` on each column slice, with what row
    t's adapter has there: m = 1 and nothing is added where it has nothing.

    loras[t][k]: row t's adapter at the site of slice k, None where it touches nothing there.
    """
    out_TO = torch.zeros(x_TI.shape[0], w_IO.shape[1], dtype=torch.float64)
    for t, x_I in enumerate(to_float64(x_TI)):
        y_O = x_I @ to_float64(w_IO)
        start = 0
        for width, lora in zip(widths, loras[t], strict=True):
            part = slice(start, start + width)
            y_O[part] = _adapted(y_O[part], x_I, lora)
            start += width
        out_TO[t] = y_O if bias_O is None else y_O + to_float64(bias_O)
    return out_TO


def adapted_row_norms(w_IO: Tensor, a_RI: Tensor, b_RO: Tensor, scale: float) -> Tensor:
    """`n[o] = || W[:, o] + s * sum_r B[r, o] A[r] ||`."""
    adapted_IO = to_float64(w_IO)
    for a_I, b_O in zip(to_float64(a_RI), to_float64(b_RO), strict=True):
        adapted_IO = adapted_IO + scale * a_I[:, None] * b_O[None, :]
    return torch.stack([(w_I * w_I).sum().sqrt() for w_I in adapted_IO.T])


def rounded_int8(w_IO: Tensor) -> Tensor:
    """Each column's values to the nearest of `s q`, q = -127 .. 127, `s = max |w| / 127`."""
    columns = []
    for w_I in to_float64(w_IO).T:
        scale = float(w_I.abs().max()) / 127
        columns.append((w_I / scale).round() * scale if scale else w_I)
    return torch.stack(columns, dim=1)


def rounded_int4(w_IO: Tensor, group_size: int) -> Tensor:
    """Each column's values, by `group_size` rows, to the nearest of `m + s q`, q = 0 .. 15,
    `m = min w`, `s = (max w - m) / 15`."""
    out_IO = to_float64(w_IO).clone()
    for start in range(0, w_IO.shape[0], group_size):
        for o in range(w_IO.shape[1]):
            w_G = out_IO[start : start + group_size, o]
            least, scale = float(w_G.min()), float(w_G.max() - w_G.min()) / 15
            if scale:
                w_G.copy_(least + ((w_G - least) / scale).round() * scale)
    return out_IO


def route(logits_TE: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """Softmax over all experts, then the top k: weights `[T, K]` and experts `[T, K]`, best first.

    With `renormalize` the k weights sum to one.
    """
    weights_TK = torch.zeros(logits_TE.shape[0], top_k, dtype=torch.float64)
    experts_TK = torch.zeros(logits_TE.shape[0], top_k, dtype=torch.int64)
    for t, logits_E in enumerate(to_float64(logits_TE)):
        exps = [math.exp(float(v) - float(logits_E.max())) for v in logits_E]
        best = sorted(range(len(exps)), key=lambda e: -exps[e])[:top_k]
        total = sum(exps[e] for e in best) if renormalize else sum(exps)
        for k, e in enumerate(best):
            weights_TK[t, k], experts_TK[t, k] = exps[e] / total, e
    return weights_TK, experts_TK


def moe(
    x_TH: Tensor,
    router_HE: Tensor,
    gate_up_EHF: Tensor,
    down_EFH: Tensor,
    top_k: int,
    renormalize: bool,
    loras: Sequence[Mapping[tuple[str, int], Lora]],
) -> Tensor:
    """`y[t] = sum_k w[t, k] * down_e(silu(gate_e(x[t])) * up_e(x[t]))`, e = top-k experts of x[t].

    gate_up_EHF `[E, H, 2 F]`, gate first. loras[t] maps ("gate" | "up" | "down", expert) to row t's
    adapter of that expert's projection. The router's columns from E on are null experts, which add
    nothing.
    """
    weights_TK, experts_TK = route(to_float64(x_TH) @ to_float64(router_HE), top_k, renormalize)
    out_TH = torch.zeros(x_TH.shape, dtype=torch.float64)
    for t, x_H in enumerate(to_float64(x_TH)):
        for k in range(top_k):
            e = int(experts_TK[t, k])
            if e >= len(gate_up_EHF):
                continue
            gate_F, up_F = (x_H @ to_float64(gate_up_EHF[e])).chunk(2)
            gate_F = _adapted(gate_F, x_H, loras[t].get(("gate", e)))
            up_F = _adapted(up_F, x_H, loras[t].get(("up", e)))
            act_F = silu_mul(torch.cat((gate_F, up_F)))
            y_H = _adapted(act_F @ to_float64(down_EFH[e]), act_F, loras[t].get(("down", e)))
            out_TH[t] += weights_TK[t, k] * y_H
    return out_TH


def uniform(seed: int, position: int) -> float:
    """`u` in [0, 1) of two integers: SplitMix64 over `mix(seed) + position`."""
    whole = (1 << 64) - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & whole
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & whole
        return z ^ (z >> 31)

    z = mix((mix(seed & whole) + position + 0x9E3779B97F4A7C15) & whole)
    return (z >> 11) / (1 << 53)


def sample(
    logits_V: Tensor,
    seed: int,
    position: int,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> int:
    """The least v with `sum_{i <= v} p[i] > u sum p`, `p = exp((x - max x) / temperature)` where
    kept: at least min_p; then the top_k best, of equals the lower ids; then the best until their
    sum is top_p of what was left. With temperature 0 the first of the largest."""
    logits = to_float64(logits_V).tolist()
    best = max(logits)
    if temperature == 0:
        return logits.index(best)
    weights = [math.exp((x - best) / temperature) for x in logits]
    weights = [w if w >= min_p else 0.0 for w in weights]
    order = sorted(range(len(weights)), key=lambda v: -weights[v])
    if top_k:
        order = order[:top_k]
    wanted, so_far = top_p * sum(weights[v] for v in order), 0.0
    kept: list[int] = []
    for v in order:
        if so_far < wanted or top_p >= 1 or not kept:
            kept.append(v)
        so_far += weights[v]
    goal, so_far, token = uniform(seed, position) * sum(weights[v] for v in kept), 0.0, -1
    for v in sorted(kept):
        if weights[v] and so_far <= goal:
            token = v
        so_far += weights[v]
    return token
