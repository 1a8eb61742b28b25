"""A layer of Qwen3-30B-A3B's experts, without adapters and with them on every expert.

Each row is a whole layer behind the router's input: router, routing, both GEMMs, activation and
weighted sum. Tokens and their experts are random and about evenly spread; token t has adapter t
modulo their number. Useful bytes count each expert and each (expert, adapter) that is hit once, as
many as are expected of random routing. Peers:

- `own base`: the same layer without adapters, so its ratio is the retention, and the difference in
  time what adapters add;
- `torch: loop over experts`: every expert on every token and a mask, as a graph can capture it;
- `torch: grouped_mm, gather-bmm`: grouped_mm over sorted pairs, and adapters of one rank packed as
  `[S, E, R, ...]`, gathered by pair;
- `vllm: fused_moe_lora`: the adapters' part alone, from the folder of peers. It is a part of a
  layer, so it says how long their adapters take, not which layer is faster.

The order is by importance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchmarks.gpu import moe_peers
from benchmarks.gpu.harness import Case, Create, Setting
from benchmarks.gpu.judges import OWN_LAYER
from benchmarks.gpu.moe_layer import PROJECTIONS, Layer, Load, Shape, create_layer, layer_error
from torch import Tensor
from torch.nn import functional

from weft_kernels import moe as torch_moe
from weft_kernels.cuda.configs import Launch, get_config
from weft_kernels.cuda.moe import moe
from weft_kernels.grouped import grouped_mm

QWEN3 = Shape(num_experts=128, top_k=8, hidden=2048, width=768)
TINY = Shape(num_experts=4, top_k=2, hidden=32, width=16)


def cases(setting: Setting) -> Iterator[Case]:
    shape = TINY if setting.is_tiny else QWEN3
    for num_tokens in (5,) if setting.is_tiny else (64, 1, 8, 32, 128, 256):
        yield _case(setting, shape, Load(num_tokens, 0, 0))
        for num_adapters in (2,) if setting.is_tiny else (32, 8, 1):
            for rank in (8,) if setting.is_tiny else (8, 16):
                if num_adapters <= num_tokens or num_adapters == 1:
                    yield _case(setting, shape, Load(num_tokens, num_adapters, rank))


def _case(setting: Setting, shape: Shape, load: Load) -> Case:
    pairs = load.num_tokens * shape.top_k
    sizes = {"pairs": pairs, "hidden": shape.hidden, "width": shape.width}
    configs = {
        f"{operator}.{key}": value
        for operator in ("moe_gate_up", "moe_down")
        for key, value in get_config(operator, **sizes).items()
    }
    labels = {"tokens": load.num_tokens, "adapters": load.num_adapters, "rank": load.rank}

    def create() -> Launch:
        return _launch(shape, create_layer(setting, shape, load))

    return Case(
        "moe_lora" if load.num_adapters else "moe",
        labels,
        create,
        useful_bytes=_useful_bytes(shape, load, setting.dtype.itemsize),
        error=lambda: layer_error(shape, create_layer(setting, shape, load)),
        # the activation and the adapters' rank rows are rounded to bfloat16 on the way
        tolerance=2e-2,
        flops=2
        * pairs
        * 3
        * (shape.hidden * shape.width + load.rank * (shape.hidden + shape.width)),
        config=configs,
        peers=_peers(setting, shape, load),
    )


def _useful_bytes(shape: Shape, load: Load, itemsize: int) -> int:
    """Weights of what random routing is expected to hit, x, the router and y."""
    share = shape.top_k / shape.num_experts
    experts = shape.num_experts * (1 - (1 - share) ** load.num_tokens)
    elements = experts * 3 * shape.hidden * shape.width
    elements += shape.hidden * (shape.num_experts + 2 * load.num_tokens)
    if load.num_adapters:
        tokens_each = load.num_tokens / load.num_adapters
        sites = load.num_adapters * shape.num_experts * (1 - (1 - share) ** tokens_each)
        elements += sites * 3 * load.rank * (shape.hidden + shape.width)
    return int(elements) * itemsize


def _launch(shape: Shape, layer: Layer) -> Launch:
    return lambda: moe(layer.x_TH, layer.weights, shape.top_k, True, layer.lora)


# ---- peers ----


def _peers(setting: Setting, shape: Shape, load: Load) -> dict[str, Create]:
    def layer() -> Layer:
        return create_layer(setting, shape, load)

    def with_layer(create: Callable[[Shape, Layer], Launch]) -> Create:
        return lambda: create(shape, layer())

    if load.num_adapters == 0:
        return {
            "torch: loop over experts": with_layer(_create_loop),
            "torch: grouped_mm": with_layer(_create_gather_bmm),
        }
    peers: dict[str, Create] = {
        OWN_LAYER: lambda: _launch(
            shape, create_layer(setting, shape, Load(load.num_tokens, 0, 0))
        ),
        "torch: grouped_mm, gather-bmm": lambda: _create_gather_bmm(
            shape, layer(), _create_packed(setting, shape, load)
        ),
    }
    folder = setting.peers
    if folder is not None and moe_peers.is_in(folder):
        peers["vllm: fused_moe_lora"] = lambda: _create_vllm(folder, setting, shape, load)
    return peers


def _create_vllm(folder: Path, setting: Setting, shape: Shape, load: Load) -> Launch:
    """Weights drawn in their layout, for the slots and experts of a layer of ours."""
    layer = create_layer(setting, shape, load)
    weights_TK, experts_TK = torch_moe.route(
        layer.x_TH @ layer.weights.router_HE, shape.top_k, True
    )
    packed = _create_packed(setting, shape, load)

    def by_slot(matrices: Tensor) -> Tensor:
        rows, columns = matrices.shape[1:]
        transposed = matrices.transpose(1, 2).contiguous()
        return transposed.view(load.num_adapters, shape.num_experts, columns, rows)

    assert layer.lora is not None
    problem = moe_peers.VllmProblem(
        x_TH=layer.x_TH,
        act_PF=torch.randn(
            experts_TK.numel(), shape.width, device=setting.device, dtype=setting.dtype
        ),
        weights_TK=weights_TK,
        experts_TK=experts_TK,
        slots_T=layer.lora.slots_T,
        a=[by_slot(packed[name][0]) for name in PROJECTIONS],
        b=[by_slot(packed[name][1]) for name in PROJECTIONS],
    )
    return moe_peers.create_launch(folder, problem)[0]


def _create_loop(shape: Shape, layer: Layer) -> Launch:
    x_TH, weights = layer.x_TH, layer.weights

    def launch() -> Tensor:
        picked = torch_moe.route(x_TH @ weights.router_HE, shape.top_k, True)
        shares_TE = torch.zeros(
            len(x_TH), shape.num_experts, dtype=torch.float32, device=x_TH.device
        ).scatter_(1, picked[1], picked[0])
        y_TH = torch.zeros_like(x_TH)
        for expert in range(shape.num_experts):
            gate, up = (x_TH @ weights.gate_up_EHF[expert]).chunk(2, dim=1)
            down = (functional.silu(gate) * up) @ weights.down_EFH[expert]
            y_TH += down * shares_TE[:, expert, None].to(down.dtype)
        return y_TH

    return launch


Packed = dict[str, tuple[Tensor, Tensor]]


def _create_packed(setting: Setting, shape: Shape, load: Load) -> Packed:
    """A `[S E, in, R]` and B `[S E, R, out]` of each projection."""
    num_units = load.num_adapters * shape.num_experts

    def normal(*size: int) -> Tensor:
        return torch.randn(size, device=setting.device, dtype=setting.dtype)

    hidden, width, rank = shape.hidden, shape.width, load.rank
    return {
        name: (normal(num_units, num_in, rank), normal(num_units, rank, num_out))
        for name, num_in, num_out in (
            ("gate", hidden, width), ("up", hidden, width), ("down", width, hidden),
        )
    }  # fmt: skip


def _create_gather_bmm(shape: Shape, layer: Layer, packed: Packed | None = None) -> Launch:
    x_TH, weights, lora = layer.x_TH, layer.weights, layer.lora
    num_experts = shape.num_experts

    def add(y_PO: Tensor, x_PI: Tensor, name: str, units_P: Tensor) -> None:
        assert packed is not None
        a, b = packed[name]
        h_P1R = torch.bmm(x_PI[:, None], a.index_select(0, units_P))
        y_PO += torch.bmm(h_P1R, b.index_select(0, units_P))[:, 0]

    def launch() -> Tensor:
        shares_TK, experts_TK = torch_moe.route(x_TH @ weights.router_HE, shape.top_k, True)
        experts_P, order_P = experts_TK.flatten().sort(stable=True)
        bounds = torch.arange(1, num_experts + 1, device=x_TH.device)
        ends_E = torch.searchsorted(experts_P, bounds, out_int32=True)
        tokens_P = order_P // shape.top_k
        x_PH = x_TH.index_select(0, tokens_P)
        gate_up_PF = grouped_mm(x_PH, weights.gate_up_EHF, ends_E)
        units_P = experts_P
        if lora is not None:
            units_P = lora.slots_T.long().index_select(0, tokens_P) * num_experts + experts_P
            gate_PF, up_PF = gate_up_PF.chunk(2, dim=1)
            add(gate_PF, x_PH, "gate", units_P)
            add(up_PF, x_PH, "up", units_P)
        gate_PF, up_PF = gate_up_PF.chunk(2, dim=1)
        act_PF = functional.silu(gate_PF) * up_PF
        out_PH = grouped_mm(act_PF, weights.down_EFH, ends_E)
        if lora is not None:
            add(out_PH, act_PF, "down", units_P)
        back_PH = torch.empty_like(out_PH).index_copy_(0, order_P, out_PH)
        back_TKH = back_PH.view(len(x_TH), shape.top_k, -1)
        return (back_TKH * shares_TK[:, :, None].to(back_TKH.dtype)).sum(1)

    return launch
