"""Layers in one call give what their operators give one by one, to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from weft_kernels.attention import Int8Cache
from weft_kernels.layers import DenseHalf, LayerRows, LayerShape, LayerSpec, LayerStep
from weft_kernels.linear import LinearWeight, create_linear_weight
from weft_kernels.memory import Arena
from weft_kernels.native import ops
from weft_kernels.native.backend import NativeBackend
from weft_kernels.native.layers import LayerAdapters, NativeLayers
from weft_kernels.native.linear import NativeLinear, create_native_linear
from weft_kernels.native.lora import LoraRows, Run, SiteVectors, SlotParts

SHAPE = LayerShape(hidden_size=40, num_heads=4, num_kv_heads=2, head_dim=8, eps=1e-6, scale=0.3)
QKV_WIDTH, Q_WIDTH, INNER, BLOCK_SIZE = 64, 32, 24, 4
WIDTHS = {
    "qkv": (40, QKV_WIDTH),
    "o": (Q_WIDTH, 40),
    "gate_up": (40, 2 * INNER),
    "down": (INNER, 40),
}
# a prompt of 6 tokens, one of 3 after 2 that were computed before, a request that decodes
SPANS = [(0, 6, 6), (6, 3, 5), (9, 1, 7)]
TABLES = [[1, 2], [3, 4], [5, 6]]
ROW_SLOTS = [0] * 6 + [1] * 3 + [-1]
ASKED = [5, 8, 9]


@dataclass
class Model:
    """Two layers with weights of all kinds, their caches and two adapters, one with vectors."""

    is_dense: Sequence[bool] = (True, True)
    window: int | None = None
    is_plain: bool = False  # no biases, no norms of heads

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(5)
        self._arena, self._memory = Arena(), list[Tensor]()
        self.layers = [self._layer(is_dense) for is_dense in self.is_dense]
        self.caches = [self._random(7, BLOCK_SIZE, 2, 8) for _ in range(4)]
        self.slots = [self._slot(8, has_vectors=False), self._slot(16, has_vectors=True)]
        self.inputs = np.arange(4 * len(self.layers), dtype=np.int64).reshape(-1, 4)
        self.rotary, self.x = self._random(10, 2, 4), self._random(10, 40)
        self.kv_slots = torch.tensor(
            [TABLES[i][p // 4] * 4 + p % 4 for i, (_, n, stop) in enumerate(SPANS)
             for p in range(stop - n, stop)]
        )  # fmt: skip

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)

    def _linear(self, name: str) -> NativeLinear:
        return create_native_linear(self._random(*WIDTHS[name]), self._arena)

    def _bias(self, name: str) -> Tensor | None:
        return None if self.is_plain else self._random(WIDTHS[name][1])

    def _layer(self, is_dense: bool) -> LayerSpec:
        linear, bias = self._linear, self._bias
        dense = DenseHalf(linear("gate_up"), bias("gate_up"), linear("down"), bias("down"))
        head_norms = None if self.is_plain else self._random(6, 8)
        return LayerSpec(
            self._random(40), linear("qkv"), bias("qkv"), head_norms, linear("o"), bias("o"),
            self._random(40), self.window, dense if is_dense else None,
        )  # fmt: skip

    def _slot(self, rank: int, *, has_vectors: bool) -> SlotParts:
        runs, vectors = [], []
        for num_in, num_out in list(WIDTHS.values()) * len(self.layers):
            a, b, m, c = (self._random(rank, n) for n in (num_in, num_out, num_out, num_out))
            self._memory += [a, b, m, c]
            runs.append([Run(a.data_ptr(), b.data_ptr(), rank, 0, num_out, 0.5)])
            vectors.append([SiteVectors(m.data_ptr(), c.data_ptr(), 0, num_out)])
        return SlotParts.of(runs, vectors if has_vectors else ())

    def rows(self, row_slots: Sequence[int], spans: Sequence[tuple[int, int, int]]) -> LayerRows:
        attention = ops.Attention(spans, TABLES, BLOCK_SIZE, [self.window])
        adapters = LayerAdapters(LoraRows(self.slots, row_slots), self.inputs)
        return LayerRows(len(row_slots), attention, adapters)

    def step(self, row_slots: Sequence[int] = ROW_SLOTS, *, asks: bool = False) -> LayerStep:
        k, v = tuple(self.caches[:2]), tuple(self.caches[2:])
        asked, last = torch.tensor(ASKED), None
        if asks:
            spans = [(i, 1, stop) for i, (_, _, stop) in enumerate(SPANS)]
            last = self.rows([row_slots[row] for row in ASKED], spans)
        return LayerStep(self.rows(row_slots, SPANS), asked, last, self.rotary, self.kv_slots, k, v)

    def one_by_one(self, step: LayerStep) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The operators in Python: x and what is to be added to it, of all rows, and the caches. A
        half that is missing gives twice its input."""
        x, delta = self.x.clone(), None
        caches = [cache.clone() for cache in self.caches]
        lora = step.rows.adapters.rows

        def linear(y: Tensor, weight: LinearWeight, bias: Tensor | None, index: int) -> Tensor:
            assert isinstance(weight, NativeLinear)
            return weight.apply(y, bias) if lora.is_empty else lora.linear(y, weight, bias, index)

        for i, layer in enumerate(self.layers):
            h = ops.add_rms_norm_(x, delta, layer.input_norm, SHAPE.eps)
            qkv = linear(h, layer.qkv, layer.qkv_bias, 4 * i)
            q = ops.rotate_and_write(
                qkv, layer.head_norms, SHAPE.eps, self.rotary, self.kv_slots, 4, caches[i],
                caches[2 + i],
            )  # fmt: skip
            o = step.rows.attention.attend(q, caches[i], caches[2 + i], SHAPE.scale, layer.window)
            delta = linear(o.flatten(1), layer.o, layer.o_bias, 4 * i + 1)
            h = ops.add_rms_norm_(x, delta, layer.post_norm, SHAPE.eps)
            if layer.dense is None:
                delta = 2 * h
                continue
            gate_up, gate_up_bias, down, down_bias = layer.dense
            act = ops.silu_mul(linear(h, gate_up, gate_up_bias, 4 * i + 2))
            delta = linear(act, down, down_bias, 4 * i + 3)
        assert delta is not None
        return x, delta, caches

    def in_one(self, step: LayerStep) -> tuple[Tensor, Tensor]:
        run = NativeLayers(self.layers, SHAPE).start(step)
        assert run is not None
        i, x, delta = 0, self.x.clone(), None
        while i < len(self.layers):
            i, x, y = run.layers(i, x, delta)
            delta = y if self.layers[i - 1].dense is not None else 2 * y
        assert delta is not None
        return x, delta


@pytest.mark.parametrize("asks", [False, True], ids=["all rows", "the rows asked for"])
@pytest.mark.parametrize("row_slots", [ROW_SLOTS, [-1] * 10], ids=["adapters", "base alone"])
@pytest.mark.parametrize(
    "model",
    [
        Model(), Model(window=3), Model(is_plain=True), Model(is_dense=(False, True)),
        Model(is_dense=(True, False)), Model(is_dense=(False, False)),
    ],
    ids=["dense", "window", "plain", "first half alone", "last half alone", "no half dense"],
)  # fmt: skip
def test_layers_in_one_call_are_their_operators(
    model: Model, row_slots: list[int], asks: bool
) -> None:
    step = model.step(row_slots, asks=asks)
    want_x, want_delta, want_caches = model.one_by_one(step)
    x, delta = model.in_one(step)
    rows = ASKED if asks else list(range(10))
    assert torch.equal(x, want_x[rows])
    assert torch.equal(delta, want_delta[rows])
    for got, want in zip(model.caches, want_caches, strict=True):
        assert torch.equal(got, want)


def test_a_step_of_fewer_rows_after_one_of_more_is_not_touched_by_it() -> None:
    model = Model()
    layers = NativeLayers(model.layers, SHAPE)
    big = layers.start(model.step(asks=True))
    assert big is not None
    big.layers(0, model.x.clone(), None)
    spans, row_slots = [(0, 1, 7)], [1]
    step = replace(
        model.step(), rows=model.rows(row_slots, spans), rotary=model.rotary[:1],
        kv_slots_T=model.kv_slots[9:],
    )  # fmt: skip
    small, fresh = layers.start(step), NativeLayers(model.layers, SHAPE).start(step)
    assert small is not None
    assert fresh is not None
    got, want = (run.layers(0, model.x[:1].clone(), None) for run in (small, fresh))
    assert got[0] == want[0] == 2
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[2], want[2])


def test_caches_that_are_others_from_now_on_are_written() -> None:
    model = Model()
    layers = NativeLayers(model.layers, SHAPE)
    for _ in range(2):
        model.caches = [torch.zeros_like(cache) for cache in model.caches]
        run = layers.start(model.step())
        assert run is not None
        run.layers(0, model.x.clone(), None)
        assert all(cache[1:].any() for cache in model.caches)


def test_int8_caches_long_prompts_and_other_adapters_go_operator_by_operator() -> None:
    model = Model()
    layers, step = NativeLayers(model.layers, SHAPE), model.step()
    assert layers.start(step) is not None
    int8 = Int8Cache(torch.zeros(7, 4, 2, 8, dtype=torch.int8), torch.zeros(7, 4, 2))
    assert layers.start(replace(step, k_caches=(int8, int8))) is None
    long = ops.Attention([(0, 10, ops.MAX_SHORT + 1)], [list(range(200))], BLOCK_SIZE, [None])
    assert layers.start(replace(step, rows=replace(step.rows, attention=long))) is None
    assert layers.start(replace(step, rows=replace(step.rows, adapters=None))) is None


def test_quantized_layers_are_not_fused() -> None:
    layer = Model().layers[0]
    assert NativeBackend().fuse_layers([layer], SHAPE) is not None
    int8 = create_linear_weight(torch.randn(*WIDTHS["o"]), "int8")
    assert NativeBackend().fuse_layers([replace(layer, o=int8)], SHAPE) is None


def test_what_the_cpp_would_read_wrong_is_refused() -> None:
    model = Model()
    layers, step = NativeLayers(model.layers, SHAPE), model.step()
    with pytest.raises(ValueError, match="int64"):
        layers.start(replace(step, kv_slots_T=model.kv_slots.int()))
    with pytest.raises(ValueError, match="rotary"):
        layers.start(replace(step, rotary=model.rotary[:9].contiguous()))
    with pytest.raises(ValueError, match="caches of heads"):
        layers.start(replace(step, k_caches=tuple(torch.zeros(7, 4, 2, 6) for _ in range(2))))
    run = layers.start(step)
    assert run is not None
    with pytest.raises(ValueError, match="contiguous float32"):
        run.layers(0, model.x.double(), None)
    with pytest.raises(ValueError, match="rows"):
        run.layers(0, model.x[:9].clone(), None)
    with pytest.raises(ValueError, match="wider than 1024"):
        NativeLayers(model.layers, replace(SHAPE, head_dim=1026))
