"""One server process: gateway, control plane and engine, on an address and a data folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from weft.settings.adapters import AdapterSettings
from weft.settings.door import DoorSettings
from weft.settings.engine import EngineSettings
from weft.settings.fields import Option, setting
from weft.settings.requests import RequestSettings
from weft.settings.sign_in import SignInSettings
from weft.settings.stores import StoreSettings

DEFAULT_DATA_DIR = Path("weft-data")


@dataclass(frozen=True, kw_only=True)
class ServerSettings(
    EngineSettings, AdapterSettings, RequestSettings, DoorSettings, SignInSettings, StoreSettings
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
        if not self.host:
            raise ValueError("host must not be empty")

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
