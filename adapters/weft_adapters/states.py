"""Where a version is on one replica, and what the tiers remember of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from weft_adapters.pool import PooledAdapter
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import Site
from weft_adapters.workers import FairWorkers

# after this time a failure is stale: the next request tries anew
_FAILURE_S = 1.0


class AdapterState(StrEnum):
    ABSENT = "absent"  # in the store at most
    DISK = "disk"
    FETCHING = "fetching"
    HOST = "host"
    LOADING = "loading"
    DEVICE = "device"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one version is, for whoever watches. `num_bytes` are those on the device, or else in
    host memory; they and `rank` are 0 where they are not known here."""

    digest: str
    state: AdapterState
    num_references: int = 0
    rank: int = 0
    num_bytes: int = 0
    is_pinned: bool = False
    failure: str | None = None


@dataclass(slots=True)
class Entry:
    """The tiers' record of one version; times are monotonic seconds.

    `workers` have it fetched or read, or will; `is_queued` for the loader. `in_hand` are factors on
    their way from a reader to the loader. `num_damaged` counts its copies that were discarded.
    `rank` is its highest and `num_bytes` are those of its factors, both once they were read.
    `began_s`: since when it is being brought to the device; 0.0 where it is not. `is_unloading`: it
    leaves the device when nobody uses it, unless a request takes it up before. `is_new`: a request
    for it came since it was taken up last.
    """

    state: AdapterState
    tenant_id: str = ""
    workers: FairWorkers | None = None
    is_queued: bool = False
    in_hand: Mapping[Site, SiteWeights] | None = None
    num_damaged: int = 0
    pooled: PooledAdapter | None = None
    num_references: int = 0
    last_used_s: float = 0.0
    awaited_until_s: float = 0.0
    requested_s: float = 0.0
    loaded_s: float = 0.0
    failure: Exception | None = None
    failed_s: float = 0.0
    rank: int = 0
    num_bytes: int = 0
    began_s: float = 0.0
    is_unloading: bool = False
    is_new: bool = False

    @property
    def is_idle(self) -> bool:
        """Nothing is done to bring it nearer."""
        is_at_rest = self.state in (AdapterState.ABSENT, AdapterState.DISK, AdapterState.HOST)
        return is_at_rest and self.workers is None and not self.is_queued

    def placement(self, digest: str, is_pinned: bool) -> Placement:
        is_here = self.state in (AdapterState.HOST, AdapterState.LOADING)
        num_bytes = self.num_bytes if is_here else 0
        return Placement(
            digest, self.state, self.num_references, self.rank,
            num_bytes if self.pooled is None else self.pooled.num_bytes, is_pinned,
            None if self.failure is None else str(self.failure),
        )  # fmt: skip

    @property
    def is_stale_failure(self) -> bool:
        is_failed = self.state is AdapterState.FAILED
        return is_failed and time.monotonic() - self.failed_s > _FAILURE_S
