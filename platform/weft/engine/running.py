"""What runs: the places in the batch, who holds them, and who has to give one up.

A place is one running sequence; distinct adapters have places of their own. Plain Python.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from weft.engine.memory import SequenceMemory
from weft.engine.queues import TenantQueue, WaitingQueues, rank
from weft.engine.req import Req, ReqState

# so often may a request be made to yield its place to another tenant
MAX_YIELDS = 3


class AdapterResidency(Protocol):
    """What the scheduler asks of the adapter tiers; no call blocks."""

    @property
    def num_changes(self) -> int:
        """Another number when an adapter that could not be acquired may be tried again."""

    def try_acquire(self, digest: str) -> bool:
        """Take a reference if the adapter is on the device; else have it fetched and say False."""

    def release(self, digest: str) -> None:
        """Give one reference back."""

    def is_loaded(self, digest: str) -> bool:
        """The adapter is on the device, and open to those that start."""

    def is_leaving(self, digest: str) -> bool:
        """The adapter has to make room for another: who uses it gives its reference back soon, and
        waits for its return."""

    def failure(self, digest: str) -> str | None:
        """Why the adapter cannot be loaded, as a sentence; None while it may still come."""

    def take_load_cost(self, digest: str) -> float:
        """What it cost to bring the adapter, as service, if nobody was charged for it yet."""


@dataclass(frozen=True, slots=True)
class Lack:
    """What a request finds no room for."""

    place: bool
    adapter: bool
    num_blocks: int

    @property
    def is_passed_over(self) -> bool:
        """Others may start in spite of it, and could go on doing so for ever."""
        return self.adapter or self.num_blocks > 0


class RunningSet:
    """`reqs` are in the order in which they started; the first is the oldest.

    `leaving` have ended while a step in flight computes a row of theirs. Their places are free, but
    not the references to their adapters: the loader writes to pages beside the steps, and must not
    do so before that step has read them.
    """

    def __init__(
        self,
        waiting: WaitingQueues,
        memory: SequenceMemory,
        adapters: AdapterResidency,
        max_running: int,
        max_adapters: int,
    ) -> None:
        self._waiting, self._memory, self._adapters = waiting, memory, adapters
        self._max_running, self._max_adapters = max_running, max_adapters
        self.reqs: list[Req] = []
        self.leaving: list[Req] = []
        self._adapter_users: Counter[str] = Counter()
        self.num_preemptions = self.num_pauses = 0

    @property
    def is_full(self) -> bool:
        return len(self.reqs) >= self._max_running

    def lack(self, req: Req, num_new: int, num_reserved: int) -> Lack | None:
        """What keeps `req` from running with `num_new` tokens, when `num_reserved` free blocks are
        left alone; None when nothing does."""
        digest, users = req.adapter_digest, self._adapter_users
        is_new = digest is not None and digest not in users
        free = self._memory.blocks.num_free - num_reserved
        lack = Lack(
            place=self.is_full,
            adapter=is_new and len(users) >= self._max_adapters,
            num_blocks=max(0, self._memory.num_missing(req, num_new) - free),
        )
        return lack if lack.place or lack.is_passed_over else None

    def start(self, req: Req) -> None:
        """A waiting request takes a place; its reference to the adapter is taken already."""
        self._waiting.remove(req)
        self._waiting.started(req)
        req.state = ReqState.RUNNING
        req.num_tokens_at_start = len(req.token_ids)
        self.reqs.append(req)
        if req.adapter_digest is not None:
            self._adapter_users[req.adapter_digest] += 1

    def stop(self, req: Req) -> None:
        """Give the place back, and the reference to the adapter when no step in flight reads it;
        the blocks are the caller's."""
        self.reqs.remove(req)
        self._waiting.ended(req)
        if req.num_steps_in_flight:
            self.leaving.append(req)
        else:
            self._release_adapter(req)

    def leave(self, req: Req) -> None:
        """The last step that one of `leaving` was in is over."""
        self.leaving.remove(req)
        self._release_adapter(req)

    def _release_adapter(self, req: Req) -> None:
        digest = req.adapter_digest
        if digest is not None:
            self._adapters.release(digest)
            self._adapter_users[digest] -= 1
            if self._adapter_users[digest] == 0:
                del self._adapter_users[digest]

    def preempt(self, req: Req) -> None:
        """Have it wait again; what it computed goes to host memory if there is room. It must not
        be in flight: it may have ended there."""
        self._wait_again(req)
        self.take_blocks(req)

    def pause(self, req: Req) -> None:
        """Have it wait until its adapter is back; what it computed stays where it is, unless others
        want the room. It must not be in flight."""
        self._wait_again(req)
        req.num_pauses += 1
        self.num_pauses += 1

    def _wait_again(self, req: Req) -> None:
        assert not req.num_steps_in_flight, "a request in flight is made to wait"
        self.reqs.remove(req)
        self._release_adapter(req)
        req.state = ReqState.WAITING
        self._waiting.add(req)
        self._waiting.ended(req)

    def take_blocks(self, req: Req) -> None:
        """Free the blocks of one that waits; what it computed goes to host memory if there is
        room."""
        if self._memory.can_swap_out(req):
            self._memory.swap_out(req)
        else:
            self._memory.free(req)
        req.num_preemptions += 1
        self.num_preemptions += 1

    def leaving_adapters(self) -> list[Req]:
        """Those that run with an adapter which has to make room, and have a token of this turn.

        Who paused before could lose its blocks meanwhile, begin its prompt anew in its next turn,
        and take the blocks of others so: for ever, where no prompt is through in one turn.
        """
        leaving = {d for d in self._adapter_users if self._adapters.is_leaving(d)}
        return [
            req
            for req in self.reqs
            if req.adapter_digest in leaving and req.num_tokens > req.num_tokens_at_start
        ]

    def victim(self) -> Req | None:
        """Who gives its blocks back: of the most served tenant the one with the least claim; never
        the oldest of all."""
        return self.least_claim(self.reqs[1:])

    def least_claim(self, reqs: Iterable[Req]) -> Req | None:
        """Who of them gives way first."""
        return max(reqs, key=self._give_way, default=None)

    def _give_way(self, req: Req) -> tuple[float, tuple[float, float, int]]:
        """The order in which requests give way, the last one first: the same by which they start,
        so that one which its tenant put ahead is not the first to go because it came last."""
        return self._waiting.counters[req.tenant_id], rank(req)

    def may_claim(self, queue: TenantQueue) -> bool:
        """The tenant has less than its fair part of the places."""
        return queue.num_running < max(1.0, self._waiting.fair_places(queue, self._max_running))

    def yielding(self, queue: TenantQueue, lack: Lack, among: Collection[Req]) -> Req | None:
        """Who of `among` has to yield its place to `queue`'s tenant: of the tenants that keep their
        fair part without it, the most served one's request with the least claim. None when it would
        not help, or the tenant has no claim."""
        if not self.may_claim(queue):
            return None
        could = [req for req in self.reqs[1:] if req in among and self._could_yield(queue, req)]
        if lack.adapter and not lack.place:
            could = [req for req in could if self._adapter_users[req.adapter_digest or ""] == 1]
        released = sum(self._memory.blocks.num_released(req.blocks) for req in could)
        if not could or released < lack.num_blocks:
            return None
        return max(could, key=self._give_way)

    def _could_yield(self, queue: TenantQueue, req: Req) -> bool:
        other, counters = self._waiting.tenants[req.tenant_id], self._waiting.counters
        return (
            other is not queue
            and req.num_yields < MAX_YIELDS
            and counters[other.tenant_id] >= counters[queue.tenant_id]
            and other.num_running - 1 >= self._waiting.fair_places(other, self._max_running)
        )

    def integrity(self) -> None:
        """AssertionError when a place or an adapter is miscounted."""
        assert len(self.reqs) <= self._max_running, "more run than there are places"
        assert all(req.state is ReqState.RUNNING for req in self.reqs)
        assert all(req.is_finished and req.num_steps_in_flight for req in self.leaving)
        holders = [*self.reqs, *self.leaving]
        users = Counter(r.adapter_digest for r in holders if r.adapter_digest is not None)
        assert users == self._adapter_users, "an adapter's users are miscounted"
        assert len(users) <= self._max_adapters, "more adapters run than there are places"
        num_running = Counter(req.tenant_id for req in self.reqs)
        tenants = self._waiting.tenants.items()
        counted = {tenant: queue.num_running for tenant, queue in tenants if queue.num_running}
        assert counted == dict(num_running), "a tenant's running requests are miscounted"
