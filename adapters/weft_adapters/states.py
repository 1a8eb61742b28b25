"""Where a version is on one replica, and what the tiers remember of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum

from weft_adapters.pool import PooledAdapter

# after this time a failure is stale: the next request tries anew
_FAILURE_S = 1.0


class AdapterState(StrEnum):
    ABSENT = "absent"
    FETCHING = "fetching"
    HOST = "host"
    LOADING = "loading"
    DEVICE = "device"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(slots=True)
class Entry:
    """The tiers' record of one version; times are monotonic seconds."""

    state: AdapterState
    pooled: PooledAdapter | None = None
    num_references: int = 0
    last_used_s: float = 0.0
    awaited_until_s: float = 0.0
    requested_s: float = 0.0
    loaded_s: float = 0.0
    failure: Exception | None = None
    failed_s: float = 0.0

    @property
    def is_stale_failure(self) -> bool:
        is_failed = self.state is AdapterState.FAILED
        return is_failed and time.monotonic() - self.failed_s > _FAILURE_S
