"""Who waits: requests by tenant, and by adapter within a tenant, in the order of fairness.

Tenants go by their virtual counters, a tenant's adapters by counters of their own, the requests of
one adapter by arrival. One step of a request's `priority` counts as much as `PRIORITY_STEP_S`
seconds of waiting, so that no priority keeps another request of the tenant waiting for ever.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, zip_longest

from weft.engine.fairness import VirtualCounters
from weft.engine.req import Req
from weft.messages import TenantShare

PRIORITY_STEP_S = 10.0


def rank(req: Req) -> tuple[float, float, int]:
    """A request's place among those of its tenant; a preempted one keeps it."""
    due_s = req.arrived_s + PRIORITY_STEP_S * req.request.priority
    return (due_s, req.arrived_s, req.index)


@dataclass(eq=False, slots=True)
class TenantQueue:
    """What one tenant has waiting and running. `adapters` holds no empty list.

    `stalled_at`: the adapters of all that waits could not be had when the residency had this number
    of changes, and nothing has been added since. A hundred that wait for their loads would have to
    be asked for in every step else.
    """

    tenant_id: str
    share: TenantShare
    max_running: int | None = None
    num_running: int = 0
    stalled_at: int | None = None
    adapters: dict[str | None, list[Req]] = field(default_factory=dict)
    counters: VirtualCounters[str | None] = field(default_factory=VirtualCounters)

    @property
    def may_start(self) -> bool:
        """False while the tenant runs as many sequences as it may."""
        caps = (self.share.max_running, self.max_running)
        return all(cap is None or self.num_running < cap for cap in caps)

    def heads(self, now: float) -> list[Req]:
        """The first request of each adapter, in the order in which they should be tried."""
        first = [reqs[0] for reqs in self.adapters.values()]
        if len(first) == 1:
            return first
        if len({req.request.priority for req in first}) == 1:
            return sorted(first, key=lambda req: self.counters[req.adapter_digest])

        def turn(req: Req) -> tuple[float, float]:
            waited = (now - req.arrived_s) // PRIORITY_STEP_S
            return (req.request.priority - waited, self.counters[req.adapter_digest])

        return sorted(first, key=turn)


class WaitingQueues:
    """All that waits. The counters outlive the queues of their tenants. `max_running` caps what
    each tenant runs at once, whatever its share says."""

    def __init__(self, max_running: int | None = None) -> None:
        self._max_running = max_running
        self.tenants: dict[str, TenantQueue] = {}
        self.counters: VirtualCounters[str] = VirtualCounters()
        self._waiting: dict[Req, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Req]:
        return iter(list(self._waiting))

    def __contains__(self, req: Req) -> bool:
        return req in self._waiting

    def tenant(self, req: Req) -> TenantQueue:
        """The tenant's queue; a new one has the share that `req` came with."""
        queue = self.tenants.get(req.tenant_id)
        if queue is None:
            queue = self.tenants[req.tenant_id] = TenantQueue(
                req.tenant_id, req.request.share, self._max_running
            )
        return queue

    def add(self, req: Req) -> None:
        queue = self.tenant(req)
        self._waiting[req] = None
        queue.stalled_at = None
        insort(queue.adapters.setdefault(req.adapter_digest, []), req, key=rank)
        queue.counters.enter(req.adapter_digest)
        self.counters.enter(req.tenant_id)

    def remove(self, req: Req) -> None:
        del self._waiting[req]
        queue = self.tenants[req.tenant_id]
        queue.stalled_at = None
        reqs = queue.adapters[req.adapter_digest]
        place = bisect_left(reqs, rank(req), key=rank)
        del reqs[next(i for i in range(place, len(reqs)) if reqs[i] is req)]
        if not reqs:
            del queue.adapters[req.adapter_digest]
            queue.counters.leave(req.adapter_digest)
        if not queue.adapters:
            self.counters.leave(req.tenant_id)

    def drop(self, req: Req) -> None:
        """Remove a request that will not run."""
        self.remove(req)
        self._forget_if_idle(self.tenants[req.tenant_id])

    def started(self, req: Req) -> None:
        """`req` was removed to run."""
        self.tenant(req).num_running += 1

    def ended(self, req: Req) -> None:
        """`req` runs no more; a tenant without requests is forgotten, but not its counter."""
        queue = self.tenants[req.tenant_id]
        queue.num_running -= 1
        self._forget_if_idle(queue)

    def _forget_if_idle(self, queue: TenantQueue) -> None:
        if queue.num_running == 0 and not queue.adapters:
            del self.tenants[queue.tenant_id]

    def next_adapters(self) -> list[str]:
        """The adapters that are waited for, in about the order in which they have their turns: one
        of each tenant, the least served first, then the next of each."""
        queues = sorted(
            (queue for queue in self.tenants.values() if queue.adapters),
            key=lambda queue: self.counters[queue.tenant_id],
        )
        columns = [sorted(queue.adapters, key=queue.counters.__getitem__) for queue in queues]
        rounds = chain.from_iterable(zip_longest(*columns))
        return [digest for digest in dict.fromkeys(rounds) if digest is not None]

    def charge(self, req: Req, service: float) -> None:
        """Service that `req` gets, or that was spent to bring its adapter."""
        queue = self.tenants[req.tenant_id]
        self.counters.charge(req.tenant_id, service / queue.share.weight)
        queue.counters.charge(req.adapter_digest, service)

    def refund(self, req: Req, service: float) -> None:
        """Service that `req` was charged for and did not get; it may have ended since."""
        queue = self.tenants.get(req.tenant_id)
        share = req.request.share if queue is None else queue.share
        self.counters.charge(req.tenant_id, -service / share.weight)
        if queue is not None:
            queue.counters.charge(req.adapter_digest, -service)

    def fair_places(self, queue: TenantQueue, num_places: int) -> float:
        """The tenant's part of `num_places`, among all that have anything waiting or running."""
        total = sum(other.share.weight for other in self.tenants.values())
        return num_places * queue.share.weight / total
