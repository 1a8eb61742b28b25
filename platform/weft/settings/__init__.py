"""Settings by process role: defaults are written here once, a bad value raises naming its key.

Knows neither the command line nor the environment; reading either is the caller's part. A group of
settings is a dataclass in a file of its own, and a server's settings are all groups together.
"""

from weft.settings.adapters import AdapterSettings
from weft.settings.engine import EngineSettings
from weft.settings.fields import MIB, Option, Settings, setting
from weft.settings.limits import LimitSettings
from weft.settings.requests import RequestSettings
from weft.settings.server import DEFAULT_DATA_DIR, ServerSettings, base_url, database_file
from weft.settings.sign_in import SignInSettings
from weft.settings.stores import StoreSettings
from weft.settings.telemetry import TelemetrySettings

__all__ = [
    "DEFAULT_DATA_DIR",
    "MIB",
    "AdapterSettings",
    "EngineSettings",
    "LimitSettings",
    "Option",
    "RequestSettings",
    "ServerSettings",
    "Settings",
    "SignInSettings",
    "StoreSettings",
    "TelemetrySettings",
    "base_url",
    "database_file",
    "setting",
]
