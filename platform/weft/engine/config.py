"""What an engine is started with, and the memory budget that follows from it.

Sizes are bytes. "auto" values are resolved once, by `resolve_memory`, into a `MemoryPlan` that is
checked against the machine before anything large is allocated.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from weft.engine.model.config import ModelConfig
from weft_adapters.policy import POLICIES
from weft_kernels.backend import BACKENDS
from weft_kernels.quantized import QUANTIZATIONS, group_size, quantized_bytes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KV_DTYPES = ("auto", "int8")
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Defaults are written here and nowhere else.

    `max_model_len`: prompt plus answer, None = the base's own limit. `kv_bytes`: None = room for
    `max_running` requests of full length, at most a quarter of the free memory.
    `max_waiting`: requests beyond this are refused. `num_threads`: 0 leaves torch's own choice.
    `quantization` rounds projections and experts to "int8" or "int4" at load; embedding, head,
    norms and router stay. `kv_dtype`: "int8" rounds keys and values by token and head, "auto" keeps
    them in the dtype.
    `max_running_per_tenant` caps what one tenant runs at once, besides its own share's cap.
    `prefix_cache` keeps blocks of finished requests for others of the same tenant and adapter that
    begin alike; `share_base_prefix` also between tenants, for the base model alone. `swap_bytes`:
    host memory for requests that are preempted; beyond it they are computed again.
    `kernels`: "native" are the CPU's own in C++ (float32), "triton" those of CUDA devices, "torch"
    what torch composes; "auto" the fastest that can run.
    `async_scheduling` schedules a step while the one before it runs; None: on CUDA. On a CPU both
    would want the same cores, and a request that stops costs a row that is thrown away.

    `adapters_dir` is the store of adapters, unless the engine is given a remote one: then
    `disk_dir` keeps up to `disk_adapter_bytes` of it at hand, and so many are downloaded at a time.
    `derived_dir`: where what is computed of adapters and the base together is kept from one run to
    the next; None: nowhere.
    `eviction_policy`: which adapters device, host memory and disk let go: "cost" by popularity,
    reload time and bytes, "lru" or "lfu".
    `loader_cpu_share`: the part of a core that loading may take while the engine steps; None: a
    twentieth where steps run on the same cores, as much as it likes beside a CUDA device.
    `adapter_load_cost`: what a tenant is charged for bringing 1 MiB of adapter to the device, in
    prompt tokens; the default is about what a 2-core CPU computes in the time of the copy.
    `check_integrity` verifies every invariant after each step (tests).
    """

    base_dir: Path
    adapters_dir: Path
    derived_dir: Path | None = None
    base_name: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    quantization: str | None = None
    kv_dtype: str = "auto"
    kernels: str = "auto"
    async_scheduling: bool | None = None
    max_model_len: int | None = None
    max_running: int = 64
    max_waiting: int = 256
    max_step_tokens: int = 512
    max_adapters_in_batch: int = 32
    max_adapter_rank: int = 256
    block_size: int = 16
    kv_bytes: int | None = None
    adapter_bytes: int = 256 * MIB
    host_adapter_bytes: int = 512 * MIB
    disk_dir: Path | None = None
    disk_adapter_bytes: int = 10 * 1024 * MIB
    num_downloads: int = 8
    eviction_policy: str = "cost"
    loader_cpu_share: float | None = None
    max_running_per_tenant: int | None = None
    prefix_cache: bool = True
    share_base_prefix: bool = False
    swap_bytes: int = 0
    adapter_load_cost: float = 10.0
    num_threads: int = 0
    step_timeout_s: float = 120.0
    check_integrity: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", *DTYPES):
            raise ValueError(f"dtype must be one of auto, {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.quantization not in (None, *QUANTIZATIONS):
            names = " or ".join(QUANTIZATIONS)
            raise ValueError(f"quantization must be {names} or none, not {self.quantization!r}")
        if self.kernels not in BACKENDS:
            names = ", ".join(BACKENDS)
            raise ValueError(f"kernels must be one of {names}, not {self.kernels!r}")
        if self.kv_dtype not in KV_DTYPES:
            names = " or ".join(KV_DTYPES)
            raise ValueError(f"kv_dtype must be {names}, not {self.kv_dtype!r}")
        if self.eviction_policy not in POLICIES:
            names = ", ".join(POLICIES)
            raise ValueError(
                f"eviction_policy must be one of {names}, not {self.eviction_policy!r}"
            )
        counts = {
            "max_running": self.max_running,
            "max_waiting": self.max_waiting,
            "max_adapters_in_batch": self.max_adapters_in_batch,
            "max_adapter_rank": self.max_adapter_rank,
            "block_size": self.block_size,
            "adapter_bytes": self.adapter_bytes,
            "host_adapter_bytes": self.host_adapter_bytes,
            "disk_adapter_bytes": self.disk_adapter_bytes,
            "num_downloads": self.num_downloads,
            "max_model_len": self.max_model_len or 1,
            "max_running_per_tenant": self.max_running_per_tenant or 1,
            "kv_bytes": self.kv_bytes or 1,
        }
        for key, value in counts.items():
            if value < 1:
                raise ValueError(f"{key} must be at least 1, not {value}")
        if self.loader_cpu_share is not None and not 0 < self.loader_cpu_share <= 1:
            raise ValueError(
                f"loader_cpu_share must be above 0 and at most 1, not {self.loader_cpu_share}"
            )
        for key in ("swap_bytes", "adapter_load_cost"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise ValueError(f"{key} must be 0 or more, not {getattr(self, key)}")
        if self.max_step_tokens < self.max_running:
            raise ValueError(
                f"max_step_tokens={self.max_step_tokens} must be at least "
                f"max_running={self.max_running}, or running requests would starve"
            )


def resolve_device(name: str) -> torch.device:
    """The device by name; "auto" is CUDA where there is one. ValueError where it is missing."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, not {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but torch sees no CUDA device")
    return device


def resolve_async_scheduling(choice: bool | None, device: torch.device) -> bool:
    """None is on where the host has nothing to do while the device runs a step."""
    return device.type == "cuda" if choice is None else choice


def resolve_loader_share(choice: float | None, device: torch.device) -> float | None:
    """The part of a core that loading is held to; None for no limit."""
    if choice is not None:
        return choice
    return None if device.type == "cuda" else 0.05


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype by name; "auto" is float32 on CPU and bfloat16 on CUDA."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes by purpose on the engine's device, and the number of KV blocks they pay for.

    `scratch_bytes`: the largest matrix that quantized weights are dequantized to at a time.
    """

    max_model_len: int
    weight_bytes: int
    scratch_bytes: int
    kv_bytes: int
    num_blocks: int
    num_host_blocks: int
    adapter_bytes: int
    free_bytes: int


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


def resolve_kv_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of keys and values: "auto" is the model's."""
    return torch.int8 if name == "int8" else dtype


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
    plan = MemoryPlan(
        max_model_len=max_model_len,
        weight_bytes=weight_bytes(model, dtype, config.quantization),
        scratch_bytes=_scratch_bytes(model, dtype, config.quantization, device),
        kv_bytes=num_blocks * block_bytes,
        num_blocks=num_blocks,
        num_host_blocks=config.swap_bytes // block_bytes,
        adapter_bytes=config.adapter_bytes,
        free_bytes=free,
    )
    for_weights = plan.weight_bytes + plan.scratch_bytes
    for_adapters = (2 if copies_adapters else 1) * plan.adapter_bytes
    needed = for_weights + plan.kv_bytes + for_adapters
    if device.type == "cpu":
        needed += config.swap_bytes
    if needed > free:
        raise ValueError(
            f"weights ({for_weights}), KV cache ({plan.kv_bytes}) and adapters "
            f"({for_adapters}) need {needed} bytes, but only {free} are free on {device}"
        )
    return plan
