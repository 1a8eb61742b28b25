"""A layer of experts with random weights and random adapters, and how far it is from float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from benchmarks.gpu.harness import Setting, relative_error
from torch import Tensor

from weft_kernels import reference
from weft_kernels.cuda.expert_lora import ExpertLora
from weft_kernels.cuda.moe import moe
from weft_kernels.cuda.pages import PAGE_ROWS, PageTable
from weft_kernels.moe import ExpertWeights

PROJECTIONS = ("gate", "up", "down")
SCALE = 2.0


@dataclass(frozen=True, slots=True)
class Shape:
    num_experts: int
    top_k: int
    hidden: int
    width: int


@dataclass(frozen=True, slots=True)
class Load:
    num_tokens: int
    num_adapters: int
    rank: int


@dataclass(frozen=True, slots=True)
class Layer:
    """Random inputs of one launch; `lora` is None without adapters."""

    x_TH: Tensor
    weights: ExpertWeights
    lora: ExpertLora | None


def create_layer(setting: Setting, shape: Shape, load: Load) -> Layer:
    def normal(*size: int) -> Tensor:
        values = torch.randn(size, device=setting.device, dtype=setting.dtype)
        return values.mul_(size[-2] ** -0.5)

    x_TH = torch.randn(load.num_tokens, shape.hidden, device=setting.device).to(setting.dtype)
    weights = ExpertWeights(
        normal(shape.hidden, shape.num_experts),
        normal(shape.num_experts, shape.hidden, 2 * shape.width),
        normal(shape.num_experts, shape.width, shape.hidden),
    )
    if load.num_adapters == 0:
        return Layer(x_TH, weights, None)
    slots_T = torch.arange(load.num_tokens, device=setting.device) % load.num_adapters
    table = _create_table(setting, shape, load)
    num_experts = shape.num_experts
    lora = ExpertLora(table, 0, num_experts, 2 * num_experts, slots_T.to(torch.int32))
    return Layer(x_TH, weights, lora)


def _create_table(setting: Setting, shape: Shape, load: Load) -> PageTable:
    """Pages of all three projections are of one size, and lie in any order in the pool."""
    pages = -(-load.rank // PAGE_ROWS)
    size = (3 * shape.num_experts, load.num_adapters)
    num_pages = size[0] * size[1] * pages
    page_size = PAGE_ROWS * (shape.hidden + shape.width)
    device = setting.device
    memory = torch.randn(num_pages * page_size, device=device, dtype=setting.dtype)
    a_offsets = torch.randperm(num_pages, device=device) * page_size
    num_in = torch.full((num_pages,), shape.hidden, device=device)
    num_in[2 * num_pages // 3 :] = shape.width
    first_pages = torch.arange(0, num_pages, pages, device=device).to(torch.int32).view(size)
    return PageTable(
        memory=memory.mul_(shape.hidden**-0.5),
        ranks=torch.full(size, pages * PAGE_ROWS, dtype=torch.int32, device=device),
        true_ranks=torch.full(size, load.rank, dtype=torch.int32, device=device),
        first_pages=first_pages,
        a_offsets=a_offsets,
        b_offsets=a_offsets + PAGE_ROWS * num_in,
        scales=torch.full(size, SCALE, device=device),
        row_scales=None,
        biases=None,
        max_rank=pages * PAGE_ROWS,
    )


def layer_error(shape: Shape, layer: Layer) -> float:
    """Against float64 for the first token and the last, with the experts that their logits name."""
    x_TH, weights = layer.x_TH, layer.weights
    got = moe(x_TH, weights, shape.top_k, True, layer.lora)
    chosen = sorted({0, len(x_TH) - 1})
    routed = reference.route((x_TH @ weights.router_HE)[chosen], shape.top_k, True)
    wants = []
    for t, weights_K, experts_K in zip(chosen, *routed, strict=True):
        x_H = x_TH[t].double()
        want = torch.zeros_like(x_H)
        for weight, expert in zip(weights_K.tolist(), experts_K.tolist(), strict=True):
            gate_up = x_H @ weights.gate_up_EHF[expert].double()
            gate_up += _delta(shape, layer, t, x_H, ("gate", "up"), expert)
            act = reference.silu_mul(gate_up).to(x_H.device)
            down = act @ weights.down_EFH[expert].double()
            want += weight * (down + _delta(shape, layer, t, act, ("down",), expert))
        wants.append(want)
    return relative_error(got[chosen], torch.stack(wants))


def _delta(
    shape: Shape, layer: Layer, t: int, x: Tensor, names: tuple[str, ...], expert: int
) -> Tensor | float:
    if layer.lora is None:
        return 0.0
    table, slot, parts = layer.lora.table, int(layer.lora.slots_T[t]), []
    for name in names:
        site = PROJECTIONS.index(name) * shape.num_experts + expert
        num_in, num_out = (
            (shape.width, shape.hidden) if name == "down" else (shape.hidden, shape.width)
        )
        a, b = _read_site(table, site, slot, num_in, num_out)
        parts.append(SCALE * (a.double() @ x) @ b.double())
    return torch.cat(parts)


def _read_site(
    table: PageTable, site: int, slot: int, num_in: int, num_out: int
) -> tuple[Tensor, Tensor]:
    """A `[R, in]` and B `[R, out]`, page by page."""
    rank, first = int(table.true_ranks[site, slot]), int(table.first_pages[site, slot])
    halves = []
    for offsets, width in ((table.a_offsets, num_in), (table.b_offsets, num_out)):
        starts = offsets[first : first + -(-rank // PAGE_ROWS)].tolist()
        pages = [table.memory[s : s + PAGE_ROWS * width].view(-1, width) for s in starts]
        halves.append(torch.cat(pages)[:rank])
    return halves[0], halves[1]
