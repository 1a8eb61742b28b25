"""What the engine is started with."""

from __future__ import annotations

from dataclasses import dataclass

from weft.settings.fields import Settings, setting

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("int8", "int4")
KV_DTYPES = ("auto", "int8")
KERNELS = ("auto", "torch", "native", "triton")

_AUTO = "Default: the engine's own."


@dataclass(frozen=True, kw_only=True)
class EngineSettings(Settings):
    """`None` leaves a choice to the engine, which reports what it chose at start.

    The names are those of the engine's own configuration.
    """

    base_name: str | None = setting(None, "The base's name in requests. Default: its folder's.")
    dtype: str = setting("auto", "auto, float32, bfloat16 or float16.", choices=DTYPES)
    device: str = setting("auto", "auto, cpu or cuda.")
    quantization: str | None = setting(
        None, "Round the weights to int8 or int4. Default: neither.", choices=QUANTIZATIONS
    )
    kv_dtype: str = setting("auto", "auto or int8: keys and values.", choices=KV_DTYPES)
    kernels: str = setting(
        "auto", "auto, torch, native (C++ for float32 on a CPU) or triton (CUDA).", choices=KERNELS
    )
    async_scheduling: bool | None = setting(
        None, "Schedule a step while the one before it runs. Default: on CUDA."
    )
    max_model_len: int | None = setting(
        None, "Prompt plus answer. Default: the base's limit.", above=0
    )
    max_running: int | None = setting(None, f"Requests in one batch. {_AUTO}", above=0)
    max_waiting: int | None = setting(
        None, f"Requests in the queue; more are refused. {_AUTO}", above=0
    )
    max_step_tokens: int | None = setting(None, f"Tokens in one step. {_AUTO}", above=0)
    max_running_per_tenant: int | None = setting(
        None, "Requests of one tenant in one batch. Default: no cap.", above=0
    )
    max_adapters_in_batch: int | None = setting(
        None, f"Adapters in one batch. {_AUTO}", flag="--max-adapters", above=0
    )
    max_adapter_rank: int | None = setting(
        None, f"Highest rank of an adapter. {_AUTO}", flag="--max-rank", above=0
    )
    kv_bytes: int | None = setting(
        None, f"MiB of KV cache. {_AUTO}", flag="--kv-mib", unit="MiB", above=0
    )
    adapter_bytes: int | None = setting(
        None,
        f"MiB for adapters on the device. {_AUTO}",
        flag="--adapter-mib",
        unit="MiB",
        above=0,
    )
    min_kv_bytes: int | None = setting(
        None,
        "MiB of KV cache to keep; the rest is lent to adapters. On a CPU. Default: all.",
        flag="--min-kv-mib",
        unit="MiB",
        above=0,
    )
    min_adapter_bytes: int | None = setting(
        None,
        "MiB to keep for adapters; the rest is lent to the KV cache. On a CPU. Default: all.",
        flag="--min-adapter-mib",
        unit="MiB",
        above=0,
    )
    host_adapter_bytes: int | None = setting(
        None,
        f"MiB for adapters in host memory. {_AUTO}",
        flag="--host-adapter-mib",
        unit="MiB",
        above=0,
    )
    disk_adapter_bytes: int | None = setting(
        None,
        f"MiB on disk for adapters of a remote store. {_AUTO}",
        flag="--disk-adapter-mib",
        unit="MiB",
        above=0,
    )
    eviction_policy: str = setting(
        "cost", "Which adapters leave device, memory and disk first: cost, lru, lfu."
    )
    swap_bytes: int | None = setting(
        None,
        "MiB of host memory for preempted requests. Default: none.",
        flag="--swap-mib",
        unit="MiB",
        above=0,
    )
    prefix_cache: bool = setting(True, "Keep prompts for later ones that begin alike.")
    share_base_prefix: bool = setting(
        False, "Share prompts to the base model itself between tenants, too."
    )
    num_threads: int | None = setting(
        None, f"CPU threads of the engine. {_AUTO}", flag="--threads", at_least=0
    )
