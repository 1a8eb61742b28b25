"""What a backend is told about decoder layers that it may compute in one go.

Legend: T rows, L layers, H hidden, F inner width, N KV heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from weft_kernels.attention import Int8Cache
from weft_kernels.linear import LinearWeight


class DenseHalf(NamedTuple):
    """SwiGLU: gate_up H to 2 F, gate first; down F to H; biases or None."""

    gate_up: LinearWeight
    gate_up_bias: Tensor | None
    down: LinearWeight
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Pre-norm attention, then `dense`; None: the caller computes what follows post_norm.

    norms `[H]`; head_norms `[heads + N, D]` of q and k, or None; biases or None; window: the tokens
    that a query sees, None for all.
    """

    input_norm: Tensor
    qkv: LinearWeight
    qkv_bias: Tensor | None
    head_norms: Tensor | None
    o: LinearWeight
    o_bias: Tensor | None
    post_norm: Tensor
    window: int | None
    dense: DenseHalf | None

    @property
    def linears(self) -> tuple[LinearWeight, ...]:
        own = (self.qkv, self.o)
        return own if self.dense is None else (*own, self.dense.gate_up, self.dense.down)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What all layers share; scale: of the products of queries and keys."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    scale: float


@dataclass(frozen=True, slots=True)
class LayerRows:
    """Rows with their attention and adapters, both of the backend's kind."""

    num_rows: int
    attention: Any
    adapters: Any


@dataclass(frozen=True, slots=True)
class LayerStep:
    """One step: all its rows; of those the ones that are asked for, int64, and what the last layer
    takes for them, or None: all are. rotary `[T, 2, D / 2]`; kv_slots_T int64 `[T]`; caches by
    layer, `[num_blocks, block_size, N, D]`."""

    rows: LayerRows
    asked: Tensor | None
    last: LayerRows | None
    rotary: Tensor
    kv_slots_T: Tensor
    k_caches: Sequence[Tensor | Int8Cache]
    v_caches: Sequence[Tensor | Int8Cache]


class StepRun(Protocol):
    """The layers of one step, to be computed from the first to the last."""

    def layers(
        self, first: int, x_TH: Tensor, delta_TH: Tensor | None
    ) -> tuple[int, Tensor, Tensor]:
        """Layers from `first` on, as far as they can go together: where they stop, x and y.

        x += delta comes first. y is what is to be added to x next; where the last of the layers has
        no `dense`, it is the normed x that its other half takes. x is changed in place; what comes
        back, of the rows asked for after the last layer, is valid until the next call.
        """


class FusedLayers(Protocol):
    def start(self, step: LayerStep) -> StepRun | None:
        """None for a step that is to be computed operator by operator."""
