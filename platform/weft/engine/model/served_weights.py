"""The base's weights site by site, as they are served: what adapters are loaded against.

Legend: I in, O out, R rank.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from weft.engine.model.weights import DenseWeights, LayerWeights, ModelWeights
from weft_adapters.sites import INPUTS, ROUTER, BaseSpec, Site
from weft_adapters.tensors import Float32
from weft_kernels.linear import LinearWeight, as_linear_weight
from weft_kernels.quantized import QuantizedMatrix
from weft_kernels.row_norms import adapted_row_norms
from weft_kernels.threads import on_this_thread_alone


class ServedWeights:
    """A `BaseWeights`. What it computes on a CPU it computes on the calling thread alone; on a CUDA
    device, on a stream of its own."""

    def __init__(self, weights: ModelWeights, base: BaseSpec, quantization: str | None) -> None:
        self._layers, self._base = weights.layers, base
        self._embed_VH, self._head = weights.embed_VH, weights.head
        dtype, self._device = weights.embed_VH.dtype, weights.embed_VH.device
        self._weight_format = f"{dtype}, {quantization}" if quantization else str(dtype)
        create_stream: Any = torch.cuda.Stream  # its constructor has no annotations
        self._stream = create_stream(self._device) if self._device.type == "cuda" else None

    @property
    def weight_format(self) -> str:
        return self._weight_format

    @torch.inference_mode()
    def bias(self, site: Site) -> Float32 | None:
        self._base.shape(site)
        if site.expert is not None:
            return None
        _, bias = _linear_at(self._layers[site.layer], _first_of_input(site))
        if bias is None:
            return None
        first, stop = self._span(site)
        with self._on_stream():
            found: Float32 = bias[first:stop].to("cpu", torch.float32, copy=True).numpy()
        return found

    @torch.inference_mode()
    def row_norms(self, site: Site, a_RI: Float32, b_RO: Float32, scale: float) -> Float32:
        with on_this_thread_alone(), self._on_stream():
            a, b = (torch.from_numpy(factor).to(self._device) for factor in (a_RI, b_RO))
            found: Float32 = adapted_row_norms(self._matrix(site), a, b, scale).cpu().numpy()
        return found

    @torch.inference_mode()
    def rows(self, site: Site, first: int, stop: int) -> Float32:
        with on_this_thread_alone(), self._on_stream():
            if site == self._base.embedding or self._base.is_tied:
                rows = self._embed_VH[first:stop]
            else:
                rows = self._head.columns(first, stop).t()
            found: Float32 = rows.to("cpu", torch.float32, copy=True).numpy()
        return found

    def served(self, rows: Float32) -> Float32:
        dtype = self._embed_VH.dtype
        if dtype is torch.float32:
            return rows
        with on_this_thread_alone():
            found: Float32 = torch.from_numpy(rows).to(dtype).float().numpy()
        return found

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _span(self, site: Site) -> tuple[int, int]:
        """The site's columns among those of its input."""
        first = 0
        for name in next(names for names in INPUTS if site.projection in names):
            width = self._base.shape(Site(site.layer, name, site.expert))[1]
            if name == site.projection:
                break
            first += width
        return first, first + width

    def _matrix(self, site: Site) -> Tensor:
        """`[I, O]`; a view where the layout has one."""
        first, stop = self._span(site)
        layer = self._layers[site.layer]
        if site.expert is None:
            weight, _ = _linear_at(layer, _first_of_input(site))
            return weight.columns(first, stop)
        assert not isinstance(layer.mlp, DenseWeights)
        is_down = site.projection == "down_proj"
        experts = layer.mlp.down_EFH if is_down else layer.mlp.gate_up_EHF
        if isinstance(experts, QuantizedMatrix):
            own = experts.select(torch.tensor([site.expert], device=self._device))
            return own.dense()[0, :, first:stop]
        return experts[site.expert, :, first:stop]


def _first_of_input(site: Site) -> str:
    return next(names[0] for names in INPUTS if site.projection in names)


def _linear_at(layer: LayerWeights, first: str) -> tuple[LinearWeight, Tensor | None]:
    """The linear whose columns are the sites of an input, and its bias."""
    if first == "q_proj":
        return layer.qkv, layer.qkv_bias
    if first == "o_proj":
        return layer.o, layer.o_bias
    if first == ROUTER:
        assert not isinstance(layer.mlp, DenseWeights)
        return as_linear_weight(layer.mlp.router_HE), None
    if first.startswith("shared_"):
        assert layer.shared is not None
        if first == "shared_expert_gate":
            return layer.shared.gate, None
        mlp = layer.shared.mlp
    else:
        assert isinstance(layer.mlp, DenseWeights)
        mlp = layer.mlp
    if first in ("gate_proj", "shared_gate_proj"):
        return mlp.gate_up, mlp.gate_up_bias
    return mlp.down, mlp.down_bias
