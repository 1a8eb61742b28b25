"""Who of the waiting starts in a step: room for it is found, made by others who yield, or it is
passed over. Plain Python, no tensors."""

from __future__ import annotations

from weft.engine.draft import StepDraft
from weft.engine.memory import SequenceMemory
from weft.engine.plan import Refusal
from weft.engine.queues import TenantQueue, WaitingQueues
from weft.engine.req import Req
from weft.engine.running import AdapterResidency, RunningSet

# so many steps may a request find no room before it is its turn
MAX_PASSED_OVER = 100


class Admission:
    """Starts waiting requests as long as a step has room for them."""

    def __init__(
        self,
        waiting: WaitingQueues,
        running: RunningSet,
        memory: SequenceMemory,
        adapters: AdapterResidency,
    ) -> None:
        self._waiting, self._running = waiting, running
        self._memory, self._adapters = memory, adapters

    def start_one(self, step: StepDraft, queue: TenantQueue, now: float) -> bool:
        """Start one waiting request of the tenant; False when none can."""
        if not queue.adapters or not queue.may_start:
            return False
        if self._running.is_full and not self._running.may_claim(queue):
            return False
        num_changes, num_absent = self._adapters.num_changes, 0
        heads = queue.heads(now)
        for req in heads:
            if req in step.tried or req in step.refused:
                continue
            step.tried.add(req)
            digest = req.adapter_digest
            if digest is None:
                if not step.is_closed and self._find_room(step, queue, req):
                    return True
            elif not self._has_failed(step, queue, digest):
                # asked also when there is no room, so that the adapter is there when there is
                if not self._adapters.try_acquire(digest):
                    num_absent += 1
                elif self._try_start_with(step, queue, req, digest):
                    return True
        queue.stalled_at = num_changes if num_absent == len(heads) else None
        return False

    def is_stalled(self, queue: TenantQueue) -> bool:
        """All that waits there waits for adapters that have not come since it was tried."""
        return queue.stalled_at is not None and queue.stalled_at == self._adapters.num_changes

    def _has_failed(self, step: StepDraft, queue: TenantQueue, digest: str) -> bool:
        reason = self._adapters.failure(digest)
        if reason is not None:
            refusal = Refusal("adapter_unavailable", reason)
            step.refused.update(dict.fromkeys(queue.adapters[digest], refusal))
        return reason is not None

    def _try_start_with(self, step: StepDraft, queue: TenantQueue, req: Req, digest: str) -> bool:
        """`req` holds a reference to the adapter, and keeps it if it starts."""
        self._waiting.charge(req, self._adapters.take_load_cost(digest))
        is_closed = step.is_closed or step.is_closed_to_adapters
        if not is_closed and self._find_room(step, queue, req):
            return True
        self._adapters.release(digest)
        return False

    def _find_room(self, step: StepDraft, queue: TenantQueue, req: Req) -> bool:
        """Start `req` if a place, an adapter place and blocks can be had; its reference to the
        adapter is taken already."""
        is_held = bool(req.blocks or req.host_blocks)
        if not is_held:
            self._memory.adopt_prefix(req)
        running = self._running
        while True:
            num_new = min(req.num_uncomputed, max(1, step.budget))
            lack = running.lack(req, num_new, step.num_reserved + step.num_kept)
            victim = None if lack is None else running.yielding(queue, lack, step.decoding)
            if victim is None or victim.num_steps_in_flight:
                break
            self._make_yield(step, victim)
        if lack is None and num_new <= step.budget:
            self._start(step, req, num_new)
            return True
        if not is_held:
            self._memory.free(req)
        step.lacks_blocks |= lack is not None and lack.num_blocks > 0
        if victim is not None:
            step.lacks_yield = True  # and is asked again when nothing is in flight
        elif lack is not None and lack.is_passed_over:
            req.num_passed_over += 1
            if req.num_passed_over > MAX_PASSED_OVER:
                step.is_closed_to_adapters = True
                step.is_closed |= lack.num_blocks > 0
        return False

    def _start(self, step: StepDraft, req: Req, num_new: int) -> None:
        self._running.start(req)
        if req.host_blocks:
            self._memory.swap_in(req)
        self._memory.grow(req, num_new)
        if req.index > 0:
            req.num_charged = req.num_prompt_tokens  # the first choice has paid for the prompt
        elif req.num_preemptions == 0 and req.num_pauses == 0:
            req.num_charged = req.num_cached_tokens = req.num_computed
        step.take(req, num_new)
        step.budget -= num_new

    def _make_yield(self, step: StepDraft, req: Req) -> None:
        step.num_reserved -= step.decoding.pop(req)
        step.budget += 1
        req.num_yields += 1
        self._running.preempt(req)
