"""One server process: gateway, control plane and engine, on an address and a data folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from weft.settings.adapters import AdapterSettings
from weft.settings.billing import BillingSettings
from weft.settings.door import DoorSettings
from weft.settings.engine import EngineSettings
from weft.settings.fields import Option, setting
from weft.settings.limits import LimitSettings
from weft.settings.metering import MeteringSettings
from weft.settings.requests import RequestSettings
from weft.settings.sign_in import SignInSettings
from weft.settings.stores import StoreSettings
from weft.settings.telemetry import TelemetrySettings

DEFAULT_DATA_DIR = Path("weft-data")


@dataclass(frozen=True, kw_only=True)
class ServerSettings(
    EngineSettings,
    AdapterSettings,
    BillingSettings,
    RequestSettings,
    LimitSettings,
    DoorSettings,
    SignInSettings,
    MeteringSettings,
    StoreSettings,
    TelemetrySettings,
):
    """All groups together. Sizes are bytes, times seconds.

    `adapters_dir`, `database_file` and `uploads_dir` follow from `data_dir`; of a remote store's
    adapters, `disk_adapter_bytes` are kept at hand in `adapter_cache_dir`.
    """

    base_dir: Path = field(
        metadata={"option": Option("Folder of the base model (Hugging Face layout).", "--base")}
    )
    data_dir: Path = setting(DEFAULT_DATA_DIR, "The server's data folder.", flag="--data")
    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(8000, "Port to listen on.")
    num_workers: int = setting(
        1,
        "Gateway processes on the port, beside one engine; several need PostgreSQL and Redis.",
        flag="--workers",
        at_least=1,
    )
    probe_host: str = setting("127.0.0.1", "Address of the port for probes and metrics.")
    probe_port: int | None = setting(
        None,
        "Port for probes and metrics. Default: with several workers the port after --port, "
        "with one worker none, and they are on --port.",
    )
    drain_deadline_s: float = setting(
        30.0,
        "Seconds that running requests get at shutdown.",
        flag="--drain-deadline",
        at_least=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be between 0 and 65535, not {self.port}")
        if self.probe_port is not None and not 0 <= self.probe_port <= 65535:
            raise ValueError(f"probe_port must be between 0 and 65535, not {self.probe_port}")
        if self.num_workers > 1:
            self._check_shared_stores()
            if self.probe_port is None and self.port == 65535:
                raise ValueError("probe_port must be given: there is no port after 65535")
        if not self.host:
            raise ValueError("host must not be empty")

    def _check_shared_stores(self) -> None:
        if not (self.database_url or "").startswith("postgres"):
            raise ValueError(
                "num_workers: several workers need a PostgreSQL database, named by "
                "WEFT_DATABASE_URL: SQLite is written by one process"
            )
        if self.redis_url is None:
            raise ValueError(
                "num_workers: several workers need Redis, named by WEFT_REDIS_URL: limits that "
                "each process counts for itself would hold for none of them"
            )

    @property
    def probes_at(self) -> tuple[str, int] | None:
        """The address of the port for probes; None: they are on the server's own port."""
        if self.probe_port is not None:
            return self.probe_host, self.probe_port
        if self.num_workers == 1:
            return None
        return self.probe_host, self.port + 1 if self.port else 0

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
    def exports_dir(self) -> Path:
        return self.data_dir / "exports"

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
