"""Who runs in the next step: continuous batching, fair between tenants. Plain Python, no tensors.

`schedule()` returns a plan, the engine runs it, `apply(plan, tokens)` takes the sampled tokens.

- Every running sequence decodes one token in every step; what is left of the step's token budget
  goes to prompts, in chunks.
- Prompts go by tenant: the one with the least service is next (see `fairness`), whichever of its
  adapters has had the least. What cannot run (its adapter is on its way, no block is free, its
  tenant runs all it may) is passed over; what was passed over for `MAX_PASSED_OVER` steps is waited
  for instead.
- When all places are taken, a tenant below its fair part of them gets one from the tenant that is
  furthest above: that one's last request yields, to go on later.
- When blocks run out, the request of the most served tenant that started last gives its own back:
  to host memory where there is room, else it is computed again. The oldest running request never
  gives way, so something always finishes.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from weft.engine.blocks import BlockManager
from weft.engine.fairness import ANSWER_TOKEN_COST, PROMPT_TOKEN_COST
from weft.engine.memory import SequenceMemory
from weft.engine.plan import Refusal, ScheduledReq, StepPlan
from weft.engine.prefix import PrefixRoots
from weft.engine.queues import TenantQueue, WaitingQueues
from weft.engine.req import Req, ReqState
from weft.messages import FinishReason

# so many steps may a request find no room before it is its turn
MAX_PASSED_OVER = 100
# so often may a request be made to yield its place to another tenant
MAX_YIELDS = 3


class AdapterResidency(Protocol):
    """What the scheduler asks of the adapter tiers; no call blocks."""

    def try_acquire(self, digest: str) -> bool:
        """Take a reference if the adapter is on the device; else have it fetched and say False."""

    def release(self, digest: str) -> None:
        """Give one reference back."""

    def failure(self, digest: str) -> str | None:
        """Why the adapter cannot be loaded, as a sentence; None while it may still come."""

    def take_load_cost(self, digest: str) -> float:
        """What it cost to bring the adapter, as service, if nobody was charged for it yet."""


@dataclass(slots=True)
class _Step:
    """A plan in the making. `num_reserved` blocks and one token each are kept for `decoding`."""

    budget: int
    decoding: dict[Req, int]
    num_reserved: int
    scheduled: list[ScheduledReq] = field(default_factory=list)
    refused: dict[Req, Refusal] = field(default_factory=dict)
    is_closed: bool = False  # a request has waited for blocks too long: nothing may start
    is_closed_to_adapters: bool = False
    tried: set[Req] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Lack:
    """What a request finds no room for."""

    place: bool
    adapter: bool
    num_blocks: int

    @property
    def is_passed_over(self) -> bool:
        """Others may start in spite of it, and could go on doing so for ever."""
        return self.adapter or self.num_blocks > 0


class Scheduler:
    """Owns the queues, the blocks and the adapter references of every request."""

    def __init__(
        self,
        blocks: BlockManager,
        adapters: AdapterResidency,
        *,
        max_running: int,
        max_step_tokens: int,
        max_adapters_in_batch: int,
        eos_token_ids: frozenset[int],
        prefix_roots: PrefixRoots | None = None,
        num_host_blocks: int = 0,
    ) -> None:
        if max_running < 1 or max_step_tokens < max_running or max_adapters_in_batch < 1:
            raise ValueError(
                f"max_running={max_running} and max_adapters_in_batch={max_adapters_in_batch} must "
                f"be at least 1 and max_step_tokens={max_step_tokens} at least max_running"
            )
        self.blocks = blocks
        self.memory = SequenceMemory(blocks, prefix_roots, num_host_blocks)
        self._adapters = adapters
        self._max_running = max_running
        self._max_step_tokens = max_step_tokens
        self._max_adapters_in_batch = max_adapters_in_batch
        self._eos_token_ids = eos_token_ids
        self.waiting = WaitingQueues()
        self.running: list[Req] = []
        self._adapter_users: Counter[str] = Counter()
        self._expiries: list[tuple[float, int, bool, Req]] = []
        self._num_added = 0
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(len(self.waiting) or self.running)

    def can_ever_run(self, num_tokens: int) -> bool:
        return self.blocks.num_needed(num_tokens) <= self.blocks.num_usable

    def add(self, req: Req) -> None:
        """Queue a request; choices that fork from another are queued when that one's prompt is
        computed."""
        self.waiting.add(req)
        self._num_added += 1
        request = req.request
        for timeout_s, is_queue in ((request.queue_timeout_s, True), (request.timeout_s, False)):
            if timeout_s is not None:
                due = (req.arrived_s + timeout_s, self._num_added, is_queue, req)
                heapq.heappush(self._expiries, due)

    # ---- planning a step ----

    def schedule(self, now: float = 0.0) -> StepPlan:
        """Decide what the next step runs. `now`: monotonic seconds, like `Req.arrived_s`."""
        refused = self._expired(now)
        while True:
            step = self._plan(now, refused)
            is_idle = all(req in refused for req in self.running)
            # otherwise all that run are prompts that wait for each other's blocks
            if step.scheduled or is_idle or not self._reclaim():
                return StepPlan(tuple(step.scheduled), self.memory.take_moves(), refused)

    def _plan(self, now: float, refused: dict[Req, Refusal]) -> _Step:
        self._relieve(refused)
        decoding = {
            req: self.memory.num_missing(req, 1)
            for req in self.running
            if req.is_decoding and req not in refused
        }
        step = _Step(
            budget=self._max_step_tokens - len(decoding),
            decoding=decoding,
            num_reserved=sum(decoding.values()),
            refused=refused,
        )
        self._schedule_prompts(step, now)
        prompts, step.scheduled = step.scheduled, []
        for req in step.decoding:
            self.memory.grow(req, 1)
            self._take(step, req, 1)
        step.scheduled += prompts
        return step

    def _expired(self, now: float) -> dict[Req, Refusal]:
        refused: dict[Req, Refusal] = {}
        while self._expiries and self._expiries[0][0] <= now:
            _, _, is_queue, req = heapq.heappop(self._expiries)
            if is_queue and req.state is ReqState.WAITING and req.num_preemptions == 0:
                refusal = Refusal("queue_timeout", "The request waited too long to be started.")
            elif is_queue:
                continue
            else:
                refusal = Refusal("deadline_exceeded", "The request took longer than it may.")
            unfinished = (c for c in req.choices if c.state is not ReqState.FINISHED)
            refused.update(dict.fromkeys(unfinished, refusal))
        return refused

    def _relieve(self, refused: Collection[Req]) -> None:
        """Preempt until all that decode can have the blocks they need for one more token."""
        while True:
            needed = sum(
                self.memory.num_missing(req, 1)
                for req in self.running
                if req.is_decoding and req not in refused
            )
            if needed <= self.blocks.num_free or not self._reclaim():
                return

    def _reclaim(self) -> bool:
        """Make some blocks free, at the cost of who has least claim to them; False at the end."""
        if self._drop_forks():
            return True
        victim = self._victim()
        if victim is None:
            return False
        self._preempt(victim)
        return True

    def _drop_forks(self) -> bool:
        """Waiting choices give up the prompt they share; they compute or match it again."""
        forks = [req for req in self.waiting if req.blocks]
        for req in forks:
            self.memory.free(req)
        return bool(forks)

    def _schedule_prompts(self, step: _Step, now: float) -> None:
        """Spend the budget on prompts, tenant by tenant, the least served one first."""
        begun: dict[str, list[Req]] = {}
        for req in self.running:
            if req not in step.decoding and req not in step.refused:
                begun.setdefault(req.tenant_id, []).append(req)
        open_tenants = {
            queue.tenant_id: queue
            for queue in self.waiting.tenants.values()
            if queue.adapters or queue.tenant_id in begun
        }
        counters = self.waiting.counters
        while step.budget > 0 and open_tenants:
            tenant_id = min(open_tenants, key=lambda t: (counters[t], open_tenants[t].num_running))
            queue = open_tenants[tenant_id]
            if begun.get(tenant_id):
                self._continue_prompt(step, begun[tenant_id].pop(0))
            elif not self._start_one(step, queue, now):
                del open_tenants[tenant_id]

    def _continue_prompt(self, step: _Step, req: Req) -> None:
        room = self.memory.room_for(req, step.num_reserved)
        num_new = min(req.num_uncomputed, step.budget, room)
        if num_new > 0:
            self.memory.grow(req, num_new)
            self._take(step, req, num_new)
            step.budget -= num_new
        else:
            step.is_closed = True  # who starts now would take blocks that this one waits for

    def _start_one(self, step: _Step, queue: TenantQueue, now: float) -> bool:
        """Start one waiting request of the tenant; False when none can."""
        if not queue.adapters or not queue.may_start:
            return False
        if len(self.running) >= self._max_running and not self._may_claim(queue):
            return False
        for req in queue.heads(now):
            if req not in step.tried and req not in step.refused:
                step.tried.add(req)
                if self._try_start(step, queue, req):
                    return True
        return False

    def _try_start(self, step: _Step, queue: TenantQueue, req: Req) -> bool:
        digest = req.adapter_digest
        if digest is None:
            return not step.is_closed and self._find_room(step, queue, req)
        reason = self._adapters.failure(digest)
        if reason is not None:
            refusal = Refusal("adapter_unavailable", reason)
            step.refused.update(dict.fromkeys(queue.adapters[digest], refusal))
            return False
        # asked also when there is no room, so that the adapter is there when there is
        if not self._adapters.try_acquire(digest):
            return False
        self.waiting.charge(req, self._adapters.take_load_cost(digest))
        is_closed = step.is_closed or step.is_closed_to_adapters
        if not is_closed and self._find_room(step, queue, req):
            return True
        self._adapters.release(digest)
        return False

    def _find_room(self, step: _Step, queue: TenantQueue, req: Req) -> bool:
        """Start `req` if a place, an adapter place and blocks can be had; its reference to the
        adapter is taken already."""
        is_held = bool(req.blocks or req.host_blocks)
        if not is_held:
            self.memory.adopt_prefix(req)
        num_new = min(req.num_uncomputed, step.budget)
        while (lack := self._lack(step, req, num_new)) is not None:
            if not self._may_claim(queue):
                break
            victim = self._yielding(step, queue, lack)
            if victim is None:
                break
            self._make_yield(step, victim)
        else:
            self._start(step, req, num_new)
            return True
        if not is_held:
            self.memory.free(req)
        if lack.is_passed_over:
            req.num_passed_over += 1
            if req.num_passed_over > MAX_PASSED_OVER:
                step.is_closed_to_adapters = True
                step.is_closed |= lack.num_blocks > 0
        return False

    def _lack(self, step: _Step, req: Req, num_new: int) -> _Lack | None:
        """What keeps `req` from running with `num_new` tokens; None when nothing does."""
        digest, users = req.adapter_digest, self._adapter_users
        is_new = digest is not None and digest not in users
        free = self.blocks.num_free - step.num_reserved
        lack = _Lack(
            place=len(self.running) >= self._max_running,
            adapter=is_new and len(users) >= self._max_adapters_in_batch,
            num_blocks=max(0, self.memory.num_missing(req, num_new) - free),
        )
        return lack if lack.place or lack.is_passed_over else None

    def _start(self, step: _Step, req: Req, num_new: int) -> None:
        self.waiting.remove(req)
        self.waiting.started(req)
        if req.host_blocks:
            self.memory.swap_in(req)
        self.memory.grow(req, num_new)
        if req.index > 0:
            req.num_charged = req.num_prompt_tokens  # the first choice has paid for the prompt
        elif req.num_preemptions == 0:
            req.num_charged = req.num_cached_tokens = req.num_computed
        req.state = ReqState.RUNNING
        self.running.append(req)
        if req.adapter_digest is not None:
            self._adapter_users[req.adapter_digest] += 1
        self._take(step, req, num_new)
        step.budget -= num_new

    def _take(self, step: _Step, req: Req, num_new: int) -> None:
        stop = req.num_computed + num_new
        samples = stop == len(req.token_ids)
        step.scheduled.append(ScheduledReq(req, req.num_computed, num_new, samples))
        # what was computed once, or came from the cache, is not charged again
        num_prompt = max(0, min(stop, req.num_prompt_tokens) - req.num_charged)
        req.num_charged += num_prompt
        cost = PROMPT_TOKEN_COST * num_prompt + (ANSWER_TOKEN_COST if samples else 0.0)
        self.waiting.charge(req, cost)

    # ---- taking back ----

    def _may_claim(self, queue: TenantQueue) -> bool:
        """The tenant has less than its fair part of the places."""
        return queue.num_running < max(1.0, self.waiting.fair_places(queue, self._max_running))

    def _yielding(self, step: _Step, queue: TenantQueue, lack: _Lack) -> Req | None:
        """Who has to yield its place to `queue`'s tenant: of the tenants that keep their fair part
        without it, the most served one's last request. None when it would not help."""
        could = [req for req in self.running[1:] if self._could_yield(step, queue, req)]
        if lack.adapter and not lack.place:
            could = [req for req in could if self._adapter_users[req.adapter_digest or ""] == 1]
        released = sum(self.blocks.num_released(req.blocks) for req in could)
        if not could or released < lack.num_blocks:
            return None
        counters = self.waiting.counters
        places = range(len(could))
        return could[max(places, key=lambda i: (counters[could[i].tenant_id], i))]

    def _could_yield(self, step: _Step, queue: TenantQueue, req: Req) -> bool:
        if req not in step.decoding or req.num_yields >= MAX_YIELDS:
            return False
        other = self.waiting.tenants[req.tenant_id]
        counters = self.waiting.counters
        return (
            other is not queue
            and counters[other.tenant_id] >= counters[queue.tenant_id]
            and other.num_running - 1 >= self.waiting.fair_places(other, self._max_running)
        )

    def _make_yield(self, step: _Step, req: Req) -> None:
        step.num_reserved -= step.decoding.pop(req)
        step.budget += 1
        req.num_yields += 1
        self._preempt(req)

    def _victim(self) -> Req | None:
        """Who gives its blocks back: the most served tenant's last; never the oldest of all."""
        counters = self.waiting.counters
        places = range(1, len(self.running))
        last = max(places, key=lambda i: (counters[self.running[i].tenant_id], i), default=None)
        return None if last is None else self.running[last]

    def _preempt(self, req: Req) -> None:
        self._stop_running(req)
        if self.memory.can_swap_out(req):
            self.memory.swap_out(req)
        else:
            self.memory.free(req)
        req.num_preemptions += 1
        self.num_preemptions += 1
        req.state = ReqState.WAITING
        self.waiting.add(req)
        self.waiting.ended(req)

    def _stop_running(self, req: Req) -> None:
        self.running.remove(req)
        if req.adapter_digest is not None:
            self._adapters.release(req.adapter_digest)
            self._adapter_users[req.adapter_digest] -= 1
            if self._adapter_users[req.adapter_digest] == 0:
                del self._adapter_users[req.adapter_digest]

    # ---- after the step ----

    def apply(
        self, plan: StepPlan, tokens: Mapping[Req, int], failed: Collection[Req] = ()
    ) -> None:
        """Take the step's sampled tokens; `tokens` has one for each req that samples, except the
        `failed` ones, whose blocks nobody else may find.

        A request that reached its end by token id or length gets its `finish_reason`; ending it is
        the caller's, who may also know of a stop string.
        """
        for item in plan.scheduled:
            req = item.req
            if req.state is not ReqState.RUNNING or req in failed:
                continue  # aborted while the step ran, or about to be ended
            req.num_computed = item.start + item.num_new
            self.memory.publish(req)
            if item.samples and req in tokens:
                if req.index == 0 and req.num_output_tokens == 0:
                    self._fork(req)
                req.token_ids.append(tokens[req])
                req.finish_reason = self._finish_reason(req)

    def _fork(self, first: Req) -> None:
        """Its prompt is computed: the other choices can go on from there."""
        for choice in first.choices[1:]:
            if choice.state is ReqState.FORKING:
                self.memory.fork(first, choice)
                choice.state = ReqState.WAITING
                self.waiting.add(choice)

    def _finish_reason(self, req: Req) -> FinishReason | None:
        sampling = req.request.sampling
        token = req.token_ids[-1]
        if token in sampling.stop_token_ids:
            return "stop"
        if not sampling.ignore_eos and token in self._eos_token_ids:
            return "stop"
        if req.num_output_tokens >= sampling.max_tokens:
            return "length"
        return None

    def finish(self, req: Req, reason: FinishReason) -> None:
        """End a request wherever it is and give back all it holds."""
        if req.state is ReqState.RUNNING:
            self._stop_running(req)
            self.waiting.ended(req)
        elif req.state is ReqState.WAITING:
            self.waiting.drop(req)
        self.memory.free(req)
        req.state = ReqState.FINISHED
        req.finish_reason = reason

    def integrity(self) -> None:
        """Raise AssertionError when a block is lost, shared by mistake or held by nobody."""
        self.memory.integrity([*self.running, *self.waiting])
        assert all(req.state is ReqState.RUNNING for req in self.running)
        assert all(req.state is ReqState.WAITING for req in self.waiting)
        users = Counter(r.adapter_digest for r in self.running if r.adapter_digest is not None)
        assert users == self._adapter_users, "an adapter's users are miscounted"
        num_running = Counter(req.tenant_id for req in self.running)
        counted = {t: q.num_running for t, q in self.waiting.tenants.items() if q.num_running}
        assert counted == dict(num_running), "a tenant's running requests are miscounted"
