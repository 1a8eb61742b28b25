"""Which kernels run where: the one place that chooses.

A `Backend` is a decoder's set of operators. This one is torch's, for any device and dtype, and the
others start from it: each replaces what it has something faster for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from weft_kernels.activation import silu_mul
from weft_kernels.attention import (
    AttentionBucket,
    Int8Cache,
    create_attention_buckets,
    paged_attention,
    write_kv,
)
from weft_kernels.layers import FusedLayers, LayerShape, LayerSpec
from weft_kernels.linear import LinearWeight, create_linear_weight
from weft_kernels.moe import ExpertWeights, QuantizedExperts, moe
from weft_kernels.norm import rms_norm
from weft_kernels.rotary import apply_rotary

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "torch", "native", "triton")


class Attention(Protocol):
    """One step's requests: where their rows and their blocks are."""

    def attend(
        self,
        q_TND: Tensor,
        k_cache: Tensor | Int8Cache,
        v_cache: Tensor | Int8Cache,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """As `paged_attention`: `[T, heads, D]`."""


class Backend:
    """torch's operators. `reads_pages`: adapters are read from the pool's pages in place;
    `reads_page_tables`: the same through tables on the device, and a step is launched without a
    wait for the device. Neither: from a packed copy."""

    name = "torch"
    reads_pages = False
    reads_page_tables = False

    def create_attention(
        self,
        spans: Sequence[tuple[int, int, int]],
        tables: Sequence[Sequence[int]],
        block_size: int,
        device: torch.device,
        windows: Sequence[int | None],
    ) -> Attention:
        """Arguments as `create_attention_buckets` takes them."""
        return _Buckets(create_attention_buckets(spans, tables, block_size, device, windows))

    def create_linear_weight(self, w_IO: Tensor, quantization: str | None = None) -> LinearWeight:
        """See `weft_kernels.linear`."""
        return create_linear_weight(w_IO, quantization)

    def fuse_layers(self, layers: Sequence[LayerSpec], shape: LayerShape) -> FusedLayers | None:
        """Whole layers in one call, where the backend can; the operators below are those of steps
        and layers that it leaves."""
        return None

    def add_rms_norm_(
        self, x_TH: Tensor, delta_TH: Tensor | None, weight_H: Tensor, eps: float
    ) -> Tensor:
        """`x += delta`, in place, then `rms_norm(x)`: the residual stream between two blocks."""
        if delta_TH is not None:
            x_TH.add_(delta_TH)
        return rms_norm(x_TH, weight_H, eps)

    def greedy(self, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        """The best token of each row, int64 `[N]`, and whether all of the row is finite, bool
        `[N]`; logits_NV float32 `[N, V]`."""
        # several times as fast as argmax on a CPU; a finite sum has finite terms, and costs a
        # fraction of looking at each
        tokens_N = logits_NV.max(dim=1).indices
        finite_N = logits_NV.sum(dim=1).isfinite()
        if not finite_N.all():
            finite_N = logits_NV.isfinite().all(dim=1)
        return tokens_N, finite_N

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See `weft_kernels.activation`."""
        return silu_mul(gate_up)

    def rotate_and_write(
        self,
        qkv: Tensor,
        norms: Tensor | None,
        eps: float,
        rotary: Tensor,
        kv_slots_T: Tensor,
        num_heads: int,
        k_cache: Tensor | Int8Cache,
        v_cache: Tensor | Int8Cache,
    ) -> Tensor:
        """q and k normalised per head and rotated, k and v written to their slots; returns q.

        qkv `[T, (heads + 2 KV heads) D]`; norms `[heads + KV heads, D]` or None; rotary `[T, 2,
        D / 2]`, see `apply_rotary`; kv_slots_T int64 `[T]`; caches `[num_blocks, block_size, KV
        heads, D]`; q `[T, heads, D]`.
        """
        num_kv_heads, head_dim = k_cache.shape[2:]
        num_qk = num_heads + num_kv_heads
        heads = qkv.view(len(qkv), -1, head_dim)
        qk, v = heads.split_with_sizes([num_qk, num_kv_heads], 1)
        if norms is not None:
            qk = rms_norm(qk, norms, eps)
        q, k = apply_rotary(qk, rotary).split_with_sizes([num_heads, num_kv_heads], 1)
        write_kv(k_cache, k, kv_slots_T)
        write_kv(v_cache, v, kv_slots_T)
        return q

    def moe(
        self,
        x_TH: Tensor,
        weights: ExpertWeights | QuantizedExperts,
        top_k: int,
        renormalize: bool,
        adapters: Any = None,
        num_tokens: Tensor | None = None,
        logits_TE: Tensor | None = None,
    ) -> Tensor:
        """See `weft_kernels.moe`. adapters: of the kind that goes with the backend, or None.

        num_tokens: int32 `[1]`; rows from there on are padding, and what comes out for them is of
        no account.
        """
        return moe(x_TH, weights, top_k, renormalize, adapters, logits_TE)


class _Buckets:
    def __init__(self, buckets: Sequence[AttentionBucket]) -> None:
        self._buckets = buckets

    def attend(
        self,
        q_TND: Tensor,
        k_cache: Tensor | Int8Cache,
        v_cache: Tensor | Int8Cache,
        scale: float,
        window: int | None,
    ) -> Tensor:
        return paged_attention(q_TND, k_cache, v_cache, self._buckets, scale, window)


def create_backend(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The kernels for a device; "auto" takes the fastest, and says in the log what it had to do
    without. ValueError for an unknown name, or one that cannot run here."""
    if name not in BACKENDS:
        raise ValueError(f"kernels must be one of {', '.join(BACKENDS)}, not {name!r}")
    if name == "triton" or (name == "auto" and device.type == "cuda"):
        return _create_cuda_backend(name, device, dtype)
    is_native = device.type == "cpu" and dtype is torch.float32
    if name == "native" and not is_native:
        raise ValueError(f"native kernels are for float32 on the CPU, not {dtype} on {device}")
    if name == "torch" or not is_native:
        return Backend()
    from weft_kernels.native.backend import NativeBackend
    from weft_kernels.native.build import NativeBuildError

    try:
        return NativeBackend()
    except NativeBuildError as error:
        if name == "native":
            raise ValueError(f"native kernels cannot be built: {error}") from error
        logger.warning("torch's operators run instead of the faster native kernels: %s", error)
        return Backend()


def _create_cuda_backend(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    try:
        import triton
    except ImportError as error:
        if name == "triton":
            raise ValueError(f"triton kernels need Triton: {error}") from error
        logger.warning("torch's operators run instead of the faster Triton kernels: %s", error)
        return Backend()
    if device.type != "cuda":
        if not triton.knobs.runtime.interpret:
            raise ValueError(
                f"triton kernels are for CUDA devices, not {device}: only under Triton's "
                "interpreter (TRITON_INTERPRET=1), which is for tests, do they run on a CPU"
            )
        if dtype is torch.bfloat16:
            raise ValueError("Triton's interpreter computes bfloat16 wrong: take float32")
    from weft_kernels.cuda.backend import CudaBackend

    return CudaBackend(device)
