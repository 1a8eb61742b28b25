"""The adapter tiers as the scheduler asks for them, with the references that requests hold."""

from __future__ import annotations

from weft.engine.config import MIB
from weft.engine.queues import WaitingQueues
from weft_adapters.pool import PooledAdapter
from weft_adapters.states import AdapterState
from weft_adapters.tiers import AdapterTiers

# so often are the tiers told who waits
EXPECT_EVERY_S = 0.05
# so often is an adapter on its way asked for again, though nothing has arrived: the tiers try as
# long as somebody asks
ASK_EVERY_S = 0.1
# remembered; a load that was forgotten is charged again to the next who uses the adapter
MAX_PAID_LOADS = 4096


class TierResidency:
    """The scheduler's view of the adapter tiers, and the adapters that running requests hold."""

    def __init__(self, tiers: AdapterTiers, cost_per_mib: float) -> None:
        self._tiers = tiers
        self._cost_per_mib = cost_per_mib
        self._paid_loads: dict[str, int] = {}
        self._references: dict[str, int] = {}
        self._asked: dict[str, int] = {}
        self._asked_s = 0.0
        self._num_rounds = 0  # of asking
        self._expected: list[str] = []
        self._expected_s = 0.0
        self.held: dict[str, PooledAdapter] = {}

    @property
    def num_changes(self) -> int:
        return self._num_rounds + self._tiers.num_changes

    def try_acquire(self, digest: str) -> bool:
        # asking in every step for each adapter that requests wait for costs more than it brings
        num_changes = self._tiers.num_changes
        if self._asked.get(digest) == num_changes:
            return False
        adapter = self._tiers.acquire(digest)
        if adapter is None:
            self._tiers.request(digest)
            self._asked[digest] = num_changes
            return False
        self.held[digest] = adapter
        self._references[digest] = self._references.get(digest, 0) + 1
        return True

    def release(self, digest: str) -> None:
        self._tiers.release(digest)
        self._references[digest] -= 1
        if self._references[digest] == 0:
            del self._references[digest], self.held[digest]

    def is_loaded(self, digest: str) -> bool:
        return self._tiers.state(digest) is AdapterState.DEVICE

    def expect(self, waiting: WaitingQueues, now: float) -> None:
        """Tell the tiers whom requests wait for, in the order of their turns."""
        if now - self._asked_s >= ASK_EVERY_S:
            self._asked_s = now
            self._num_rounds += 1
            self._asked.clear()
        if now - self._expected_s < EXPECT_EVERY_S or not (len(waiting) or self._expected):
            return
        self._expected, self._expected_s = waiting.next_adapters(), now
        self._tiers.expect(self._expected)

    def is_leaving(self, digest: str) -> bool:
        return digest in self._tiers.leaving

    def take_load_cost(self, digest: str) -> float:
        """Service units for an adapter that is held; 0 when this load of it was charged before."""
        adapter = self.held[digest]
        if self._paid_loads.get(digest) == adapter.load_number:
            return 0.0
        if len(self._paid_loads) >= MAX_PAID_LOADS:
            self._paid_loads = {d: n for d, n in self._paid_loads.items() if d in self.held}
        self._paid_loads[digest] = adapter.load_number
        return self._cost_per_mib * adapter.num_bytes / MIB

    def failure(self, digest: str) -> str | None:
        if self._asked.get(digest) == self._tiers.num_changes:
            return None
        error = self._tiers.failure(digest)
        return None if error is None else f"The adapter could not be loaded: {error}"
