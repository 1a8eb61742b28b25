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

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from weft.engine.blocks import BlockManager
from weft.engine.expiries import Expiries
from weft.engine.fairness import ANSWER_TOKEN_COST, PROMPT_TOKEN_COST
from weft.engine.memory import SequenceMemory
from weft.engine.plan import Refusal, ScheduledReq, StepPlan
from weft.engine.prefix import PrefixRoots
from weft.engine.queues import TenantQueue, WaitingQueues
from weft.engine.req import Req, ReqState
from weft.engine.running import AdapterResidency, RunningSet
from weft.messages import FinishReason

# so many steps may a request find no room before it is its turn
MAX_PASSED_OVER = 100


@dataclass(slots=True)
class _Step:
    """A plan in the making. `num_reserved` blocks and one token each are kept for `decoding`, and
    `num_kept` blocks for the prompt of the oldest running request: who came later would take them
    again and again, and give them back computing nothing new."""

    budget: int
    decoding: dict[Req, int]
    num_reserved: int
    num_kept: int = 0
    scheduled: list[ScheduledReq] = field(default_factory=list)
    refused: dict[Req, Refusal] = field(default_factory=dict)
    is_closed: bool = False  # a request has waited for blocks too long: nothing may start
    is_closed_to_adapters: bool = False
    tried: set[Req] = field(default_factory=set)


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
        max_running_per_tenant: int | None = None,
    ) -> None:
        if max_running < 1 or max_step_tokens < max_running or max_adapters_in_batch < 1:
            raise ValueError(
                f"max_running={max_running} and max_adapters_in_batch={max_adapters_in_batch} must "
                f"be at least 1 and max_step_tokens={max_step_tokens} at least max_running"
            )
        self.blocks = blocks
        self.memory = SequenceMemory(blocks, prefix_roots, num_host_blocks)
        self._adapters = adapters
        self._max_step_tokens = max_step_tokens
        self._eos_token_ids = eos_token_ids
        self.waiting = WaitingQueues(max_running_per_tenant)
        self._running = RunningSet(
            self.waiting, self.memory, adapters, max_running, max_adapters_in_batch
        )
        self._expiries = Expiries()

    @property
    def running(self) -> list[Req]:
        """Those that have blocks and a place, the one that started first ahead."""
        return self._running.reqs

    @property
    def num_preemptions(self) -> int:
        return self._running.num_preemptions

    @property
    def has_work(self) -> bool:
        return bool(len(self.waiting) or self.running)

    def can_ever_run(self, num_tokens: int) -> bool:
        return self.blocks.num_needed(num_tokens) <= self.blocks.num_usable

    def add(self, req: Req) -> None:
        """Queue a request; choices that fork from another are queued when that one's prompt is
        computed. Its tenant has from now on the share that it came with."""
        self.waiting.add(req)
        self.waiting.tenant(req).share = req.request.share
        self._expiries.add(req)

    # ---- planning a step ----

    def schedule(self, now: float = 0.0) -> StepPlan:
        """Decide what the next step runs. `now`: monotonic seconds, like `Req.arrived_s`."""
        refused = self._expiries.pop(now)
        while True:
            step = self._plan(now, refused)
            if not step.scheduled:
                # nothing runs while forks hold blocks that others wait for, or all that run are
                # prompts that wait for each other's
                is_idle = all(req in refused for req in self.running)
                if self._drop_forks() if is_idle else self._reclaim():
                    continue
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
        if self.running and self.running[0] not in decoding and self.running[0] not in refused:
            oldest = self.running[0]
            num_new = min(oldest.num_uncomputed, self._max_step_tokens)
            step.num_kept = self.memory.num_missing(oldest, num_new)
        self._schedule_prompts(step, now)
        prompts, step.scheduled = step.scheduled, []
        for req in step.decoding:
            self.memory.grow(req, 1)
            self._take(step, req, 1)
        step.scheduled += prompts
        return step

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
        victim = self._running.victim()
        if victim is not None:
            self._running.preempt(victim)
        return victim is not None

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
        # a full batch may have spent the budget, but who yields a place gives its token back
        while open_tenants and (step.budget > 0 or self._running.is_full):
            tenant_id = min(open_tenants, key=lambda t: (counters[t], open_tenants[t].num_running))
            queue = open_tenants[tenant_id]
            if step.budget > 0 and begun.get(tenant_id):
                self._continue_prompt(step, begun[tenant_id].pop(0))
            elif not self._start_one(step, queue, now):
                del open_tenants[tenant_id]

    def _continue_prompt(self, step: _Step, req: Req) -> None:
        if req is self.running[0]:
            step.num_kept = 0
        room = self.memory.room_for(req, step.num_reserved + step.num_kept)
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
        if self._running.is_full and not self._running.may_claim(queue):
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
        running = self._running
        while True:
            num_new = min(req.num_uncomputed, max(1, step.budget))
            lack = running.lack(req, num_new, step.num_reserved + step.num_kept)
            victim = None if lack is None else running.yielding(queue, lack, step.decoding)
            if victim is None:
                break
            self._make_yield(step, victim)
        if lack is None and num_new <= step.budget:
            self._start(step, req, num_new)
            return True
        if not is_held:
            self.memory.free(req)
        if lack is not None and lack.is_passed_over:
            req.num_passed_over += 1
            if req.num_passed_over > MAX_PASSED_OVER:
                step.is_closed_to_adapters = True
                step.is_closed |= lack.num_blocks > 0
        return False

    def _start(self, step: _Step, req: Req, num_new: int) -> None:
        self._running.start(req)
        if req.host_blocks:
            self.memory.swap_in(req)
        self.memory.grow(req, num_new)
        if req.index > 0:
            req.num_charged = req.num_prompt_tokens  # the first choice has paid for the prompt
        elif req.num_preemptions == 0:
            req.num_charged = req.num_cached_tokens = req.num_computed
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

    def _make_yield(self, step: _Step, req: Req) -> None:
        step.num_reserved -= step.decoding.pop(req)
        step.budget += 1
        req.num_yields += 1
        self._running.preempt(req)

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
        # a grammar has end of text only where it ends itself
        ends = not sampling.ignore_eos or req.grammar is not None
        if ends and token in self._eos_token_ids:
            return "stop"
        if req.num_output_tokens >= sampling.max_tokens:
            return "length"
        return None

    def finish(self, req: Req, reason: FinishReason) -> None:
        """End a request wherever it is and give back all it holds."""
        if req.state is ReqState.RUNNING:
            self._running.stop(req)
        elif req.state is ReqState.WAITING:
            self.waiting.drop(req)
        self.memory.free(req)
        req.state = ReqState.FINISHED
        req.finish_reason = reason

    def integrity(self) -> None:
        """Raise AssertionError when a block is lost, shared by mistake or held by nobody."""
        self.memory.integrity([*self.running, *self.waiting])
        self._running.integrity()
        assert all(req.state is ReqState.WAITING for req in self.waiting)
