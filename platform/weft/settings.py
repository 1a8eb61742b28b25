"""Settings by process role: defaults are written here once, a bad value raises naming its key.

Knows neither the command line nor the environment; reading either is the caller's part.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

MIB = 1024 * 1024
DEFAULT_DATA_DIR = Path("weft-data")
DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("int8", "int4")
KV_DTYPES = ("auto", "int8")
KERNELS = ("auto", "torch", "native", "triton")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """One server process: gateway, control plane and engine.

    `None` leaves a choice to the engine, which reports what it chose at start. Sizes are bytes,
    times seconds. A request that was not started within `queue_timeout_s`, whose adapter was not
    loaded within `adapter_timeout_s`, or that is not over within `request_timeout_s`, is ended
    (None: never). Adapters are stored in `adapter_store` ("s3://bucket/prefix", at
    `s3_endpoint_url` if it is not Amazon's), and then `disk_adapter_bytes` of them are kept at
    hand in `adapter_cache_dir`; None: in `adapters_dir`. A deleted version's files are kept for
    `version_retention_s`. `adapters_dir`, `database_file` and `uploads_dir` follow from
    `data_dir`.
    Imports come from `hub_host`, which may lead on to `import_hosts` ("*.name": all below it) at
    public addresses, or at those in `import_networks`, and from `import_buckets`: "bucket" or
    "bucket/folder", where "{tenant}" is the tenant's id. `lorax_status_codes`: LoRAX's routes
    answer 424 where no text came of a valid request, an unknown adapter included, as LoRAX does.
    """

    base_dir: Path
    data_dir: Path = DEFAULT_DATA_DIR
    host: str = "127.0.0.1"
    port: int = 8000
    base_name: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    quantization: str | None = None
    kv_dtype: str = "auto"
    kernels: str = "auto"
    async_scheduling: bool | None = None
    max_model_len: int | None = None
    max_running: int | None = None
    max_waiting: int | None = None
    max_step_tokens: int | None = None
    max_running_per_tenant: int | None = None
    max_adapters_in_batch: int | None = None
    max_adapter_rank: int | None = None
    kv_bytes: int | None = None
    adapter_bytes: int | None = None
    host_adapter_bytes: int | None = None
    disk_adapter_bytes: int | None = None
    eviction_policy: str = "cost"
    adapter_store: str | None = None
    s3_endpoint_url: str | None = None
    swap_bytes: int | None = None
    prefix_cache: bool = True
    share_base_prefix: bool = False
    num_threads: int | None = None
    max_upload_bytes: int = 1024 * MIB
    max_versions_per_tenant: int = 20_000
    max_stored_bytes_per_tenant: int = 200 * 1024 * MIB
    version_retention_s: float = 7 * 24 * 3600.0
    upload_ttl_s: float = 24 * 3600.0
    hub_host: str = "huggingface.co"
    import_hosts: tuple[str, ...] = ("huggingface.co", "*.huggingface.co", "*.hf.co")
    import_networks: tuple[str, ...] = ()
    import_buckets: tuple[str, ...] = ()
    sweep_interval_s: float = 600.0
    max_body_bytes: int = 4 * MIB
    max_prompts_per_request: int = 64
    max_stream_backlog_bytes: int = MIB
    keepalive_s: float = 15.0
    stall_timeout_s: float = 60.0
    queue_timeout_s: float | None = None
    adapter_timeout_s: float | None = 30.0
    request_timeout_s: float | None = None
    drain_deadline_s: float = 30.0
    lorax_status_codes: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be between 0 and 65535, not {self.port}")
        if not self.host:
            raise ValueError("host must not be empty")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.quantization not in (None, *QUANTIZATIONS):
            names = " or ".join(QUANTIZATIONS)
            raise ValueError(f"quantization must be {names} or none, not {self.quantization!r}")
        if self.kv_dtype not in KV_DTYPES:
            names = " or ".join(KV_DTYPES)
            raise ValueError(f"kv_dtype must be {names}, not {self.kv_dtype!r}")
        if self.kernels not in KERNELS:
            names = ", ".join(KERNELS)
            raise ValueError(f"kernels must be one of {names}, not {self.kernels!r}")
        for network in self.import_networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"import_networks must be networks: {error}") from error
        for key in _POSITIVE:
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ValueError(f"{key} must be above 0, not {value}")
        for key in ("num_threads", "drain_deadline_s", "version_retention_s"):
            value = getattr(self, key)
            if value is not None and value < 0:
                raise ValueError(f"{key} must not be negative, not {value}")

    @property
    def adapters_dir(self) -> Path:
        return self.data_dir / "adapters"

    @property
    def adapter_cache_dir(self) -> Path:
        return self.data_dir / "adapter-cache"

    @property
    def opened_adapters_dir(self) -> Path:
        return self.data_dir / "opened-adapters"

    @property
    def uploads_dir(self) -> Path:
        return self.data_dir / "uploads"

    @property
    def database_file(self) -> Path:
        return database_file(self.data_dir)


def database_file(data_dir: Path) -> Path:
    """Where a data folder keeps its database."""
    return data_dir / "weft.db"


def base_url(host: str, port: int) -> str:
    """The address that clients use for a server bound to `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"http://{quote(reachable, safe='[]:.')}:{port}/v1"


# whole numbers that the engine is started with
_ENGINE_SIZES = (
    "max_model_len",
    "max_running",
    "max_waiting",
    "max_step_tokens",
    "max_adapters_in_batch",
    "max_adapter_rank",
    "kv_bytes",
    "adapter_bytes",
    "host_adapter_bytes",
    "disk_adapter_bytes",
    "max_running_per_tenant",
    "swap_bytes",
)
# all that the engine is started with, besides its folders
ENGINE_KEYS = (
    "base_name",
    "dtype",
    "device",
    "quantization",
    "kv_dtype",
    "kernels",
    "async_scheduling",
    "eviction_policy",
    "num_threads",
    "prefix_cache",
    "share_base_prefix",
    *_ENGINE_SIZES,
)
_POSITIVE = (
    *_ENGINE_SIZES,
    "max_upload_bytes",
    "max_versions_per_tenant",
    "max_stored_bytes_per_tenant",
    "sweep_interval_s",
    "upload_ttl_s",
    "max_body_bytes",
    "max_prompts_per_request",
    "max_stream_backlog_bytes",
    "keepalive_s",
    "stall_timeout_s",
    "queue_timeout_s",
    "adapter_timeout_s",
    "request_timeout_s",
)
