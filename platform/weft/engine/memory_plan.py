"""The memory budget that follows from an engine's configuration.

Sizes are bytes. "auto" values are resolved once, by `resolve_memory`, into a `MemoryPlan` that is
checked against the machine before anything large is allocated.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from weft.engine.config import EngineConfig, resolve_kv_dtype
from weft.engine.model.config import ModelConfig
from weft_kernels.quantized import group_size, quantized_bytes


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes by purpose on the engine's device, and the number of KV blocks they pay for.

    `scratch_bytes`: the largest matrix that quantized weights are dequantized to at a time.
    `max_blocks`, `max_adapter_bytes`: what either may have while the other lends it all it can.
    """

    max_model_len: int
    weight_bytes: int
    scratch_bytes: int
    kv_bytes: int
    num_blocks: int
    num_host_blocks: int
    adapter_bytes: int
    free_bytes: int
    min_blocks: int
    max_blocks: int
    max_adapter_bytes: int

    @property
    def is_lent(self) -> bool:
        """KV blocks and adapter pages lend each other room."""
        is_fixed = (
            self.max_blocks == self.num_blocks and self.max_adapter_bytes == self.adapter_bytes
        )
        return not is_fixed


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class _Projections:
    """Matrices that may be rounded, alike in `count` layers: `num_stacked` side by side.

    `width` is the config's name for their inputs.
    """

    width: str
    count: int
    num_in: int
    num_out: int
    num_stacked: int = 1


def _projections(model: ModelConfig) -> list[_Projections]:
    num_sparse, hidden = len(model.moe_layers), model.hidden_size
    num_dense, num_experts = model.num_layers - num_sparse, model.num_experts
    inner, shared = model.intermediate_size, model.shared_intermediate_size
    expert = model.moe_intermediate_size
    matrices = [
        _Projections("hidden_size", model.num_layers, hidden, model.q_size + 2 * model.kv_size),
        _Projections("num_attention_heads * head_dim", model.num_layers, model.q_size, hidden),
        _Projections("hidden_size", num_dense, hidden, 2 * inner),
        _Projections("intermediate_size", num_dense, inner, hidden),
        _Projections("hidden_size", num_sparse, hidden, 2 * expert, num_experts),
        _Projections("moe_intermediate_size", num_sparse, expert, hidden, num_experts),
        _Projections("hidden_size", num_sparse, hidden, 2 * shared),
        _Projections("shared_expert_intermediate_size", num_sparse, shared, hidden),
    ]
    return [p for p in matrices if p.count and p.num_in and p.num_out and p.num_stacked]


def _check_quantization(config: EngineConfig, model: ModelConfig) -> None:
    for p in _projections(model) if config.quantization == "int4" else ():
        try:
            group_size(p.num_in)
        except ValueError as error:
            raise ValueError(
                f"quantization='int4' does not fit the base: {p.width}={p.num_in}, and {error}"
            ) from error


def weight_bytes(model: ModelConfig, dtype: torch.dtype, quantization: str | None) -> int:
    """Bytes as laid out in memory, the tied head's own copy included; norms and biases are left
    out."""
    router = model.num_experts * model.hidden_size * len(model.moe_layers)
    total = (2 * model.vocab_size * model.hidden_size + router) * dtype.itemsize
    for p in _projections(model):
        if quantization is None:
            each = p.num_in * p.num_out * dtype.itemsize
        else:
            each = quantized_bytes(p.num_in, p.num_out, dtype, quantization)
        total += p.count * p.num_stacked * each
    return total


def _scratch_bytes(
    model: ModelConfig, dtype: torch.dtype, quantization: str | None, device: torch.device
) -> int:
    """Experts of a layer are dequantized together, linears on a CPU by slices of no account."""
    if quantization is None:
        return 0
    sizes = (
        p.num_stacked * p.num_in * p.num_out
        for p in _projections(model)
        if p.num_stacked > 1 or device.type != "cpu"
    )
    return max(sizes, default=0) * dtype.itemsize


def kv_token_bytes(model: ModelConfig, kv_dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in all layers, and of their scales in int8."""
    scales = 4 * model.num_kv_heads if kv_dtype is torch.int8 else 0
    return 2 * model.num_layers * (model.kv_size * kv_dtype.itemsize + scales)


def resolve_memory(
    config: EngineConfig,
    model: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    copies_adapters: bool,
) -> MemoryPlan:
    """Work out the budget; ValueError with the figures when it cannot hold.

    `copies_adapters`: those in use are packed beside the pool, which takes about as much again,
    more where an adapter touches only some experts or sites that others do not.
    """
    max_model_len = config.max_model_len or model.max_position_embeddings
    if max_model_len > model.max_position_embeddings:
        raise ValueError(
            f"max_model_len={max_model_len} is more than the base's "
            f"max_position_embeddings={model.max_position_embeddings}"
        )
    _check_quantization(config, model)
    kv_dtype = resolve_kv_dtype(config.kv_dtype, dtype)
    block_bytes = config.block_size * kv_token_bytes(model, kv_dtype)
    per_req = -(-max_model_len // config.block_size)
    free = _free_bytes(device)
    if config.kv_bytes is None:
        num_blocks = 1 + min(config.max_running * per_req, free // 4 // block_bytes)
    else:
        num_blocks = config.kv_bytes // block_bytes
    if num_blocks - 1 < per_req:
        raise ValueError(
            f"the KV cache has room for {max(num_blocks - 1, 0) * config.block_size} tokens, less "
            f"than one request of max_model_len={max_model_len}: raise kv_bytes (at least "
            f"{(per_req + 1) * block_bytes}) or lower max_model_len"
        )
    min_blocks, max_blocks, max_adapter_bytes = _lent(
        config, num_blocks, block_bytes, per_req, device
    )
    plan = MemoryPlan(
        max_model_len=max_model_len,
        weight_bytes=weight_bytes(model, dtype, config.quantization),
        scratch_bytes=_scratch_bytes(model, dtype, config.quantization, device),
        kv_bytes=num_blocks * block_bytes,
        num_blocks=num_blocks,
        num_host_blocks=config.swap_bytes // block_bytes,
        adapter_bytes=config.adapter_bytes,
        free_bytes=free,
        min_blocks=min_blocks,
        max_blocks=max_blocks,
        max_adapter_bytes=max_adapter_bytes,
    )
    for_weights = plan.weight_bytes + plan.scratch_bytes
    for_copies = plan.max_adapter_bytes if copies_adapters else 0
    for_adapters = plan.adapter_bytes + for_copies
    needed = for_weights + plan.kv_bytes + for_adapters
    if device.type == "cpu":
        needed += config.swap_bytes
    if needed > free:
        raise ValueError(
            f"weights ({for_weights}), KV cache ({plan.kv_bytes}) and adapters "
            f"({for_adapters}) need {needed} bytes, but only {free} are free on {device}"
        )
    return plan


def _lent(
    config: EngineConfig, num_blocks: int, block_bytes: int, per_req: int, device: torch.device
) -> tuple[int, int, int]:
    """The least and the most blocks, and the most bytes of adapters."""
    min_kv, min_adapters = config.min_kv_bytes, config.min_adapter_bytes
    if min_kv is None and min_adapters is None:
        return num_blocks - 1, num_blocks, config.adapter_bytes
    if device.type != "cpu":
        raise ValueError(
            "min_kv_bytes and min_adapter_bytes need a CPU: on CUDA, what KV cache and adapters "
            "have stays theirs"
        )
    kv_bytes = num_blocks * block_bytes
    min_kv = kv_bytes if min_kv is None else min_kv
    min_adapters = config.adapter_bytes if min_adapters is None else min_adapters
    for key, least, value in (
        ("kv_bytes", min_kv, kv_bytes), ("adapter_bytes", min_adapters, config.adapter_bytes)
    ):  # fmt: skip
        if least > value:
            raise ValueError(f"min_{key}={least} is more than {key}={value}")
    # a request of full length must be able to run
    min_blocks = max(per_req, min_kv // block_bytes - 1)
    max_blocks = num_blocks + (config.adapter_bytes - min_adapters) // block_bytes
    return (
        min_blocks,
        max_blocks,
        config.adapter_bytes + (num_blocks - 1 - min_blocks) * block_bytes,
    )
