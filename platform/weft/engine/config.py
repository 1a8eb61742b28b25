"""What an engine is started with. Sizes are bytes; what follows from them is in `memory_plan`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from weft_adapters.policy import POLICIES
from weft_kernels.backend import BACKENDS
from weft_kernels.quantized import QUANTIZATIONS

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
    `min_kv_bytes`, `min_adapter_bytes`: KV blocks and adapter pages lend each other what of
    `kv_bytes` and `adapter_bytes` they do not need, and keep so much; None: what they have stays
    theirs. On a CPU only.
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
    min_kv_bytes: int | None = None
    min_adapter_bytes: int | None = None
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
            "min_kv_bytes": 1 if self.min_kv_bytes is None else self.min_kv_bytes,
            "min_adapter_bytes": 1 if self.min_adapter_bytes is None else self.min_adapter_bytes,
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


def resolve_kv_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of keys and values: "auto" is the model's."""
    return torch.int8 if name == "int8" else dtype
