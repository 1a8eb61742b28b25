"""Who runs in the next step: continuous batching, fair between tenants. Plain Python, no tensors.

`schedule()` returns a plan, the engine runs it, `apply(plan, tokens)` takes the sampled tokens. In
between the plan is in flight, and where `can_look_ahead` the next one may be scheduled: as if every
row that samples had its token, so that a request which ends with that token has a row too many.

- Every running sequence decodes one token in every step; what is left of the step's token budget
  goes to prompts, in chunks.
- Prompts go by tenant: the one with the least service is next (see `fairness`), whichever of its
  adapters has had the least. What cannot run (its adapter is on its way, no block is free, its
  tenant runs all it may) is passed over; what was passed over for `MAX_PASSED_OVER` steps is waited
  for instead.
- When all places are taken, a tenant below its fair part of them gets one from the tenant that is
  furthest above: that one's request with the least claim yields, to go on later.
- When an adapter has to make room for one that has waited its time, those who run with it pause,
  their blocks with them, until it is back.
- When blocks run out, the request of the most served tenant with the least claim (by its priority,
  then its arrival) gives its own back: to host memory where there is room, else it is computed
  again. Those that pause come first. The oldest running request never gives way, so something
  always finishes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from weft.engine.admission import Admission
from weft.engine.blocks import BlockManager
from weft.engine.draft import StepDraft
from weft.engine.expiries import Expiries
from weft.engine.fairness import ANSWER_TOKEN_COST
from weft.engine.memory import SequenceMemory
from weft.engine.plan import Refusal, ScheduledReq, StepPlan
from weft.engine.prefix import PrefixRoots
from weft.engine.queues import WaitingQueues
from weft.engine.reclaimer import Reclaimer
from weft.engine.req import Req, ReqState
from weft.engine.running import AdapterResidency, RunningSet
from weft.messages import FinishReason


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
        self._adapters = adapters
        self.memory = SequenceMemory(blocks, prefix_roots, num_host_blocks)
        self._max_step_tokens = max_step_tokens
        self._eos_token_ids = eos_token_ids
        self.waiting = WaitingQueues(max_running_per_tenant)
        self._running = RunningSet(
            self.waiting, self.memory, adapters, max_running, max_adapters_in_batch
        )
        self._admission = Admission(self.waiting, self._running, self.memory, adapters)
        self._reclaimer = Reclaimer(self.waiting, self._running, self.memory, blocks)
        self._expiries = Expiries()
        self._lacks_yield = False
        self.lacks_blocks = False  # some could have started in the last step if there were more

    @property
    def running(self) -> list[Req]:
        """Those that have blocks and a place, the one that started first ahead."""
        return self._running.reqs

    @property
    def num_preemptions(self) -> int:
        return self._running.num_preemptions

    @property
    def num_pauses(self) -> int:
        return self._running.num_pauses

    @property
    def has_work(self) -> bool:
        return bool(len(self.waiting) or self.running)

    @property
    def has_rows_in_flight(self) -> bool:
        return bool(self._running.leaving) or any(r.num_steps_in_flight for r in self.running)

    def can_ever_run(self, num_tokens: int) -> bool:
        return self.blocks.num_needed(num_tokens) <= self.blocks.num_usable

    def add(self, req: Req) -> None:
        """Queue a request; choices that fork from another are queued when that one's prompt is
        computed. Its tenant has from now on the share that it came with."""
        self.waiting.add(req)
        self.waiting.tenant(req).share = req.request.share
        self._expiries.add(req)

    # ---- planning a step ----

    @property
    def can_look_ahead(self) -> bool:
        """Whether to schedule before what is in flight is applied. Not where the next step depends
        on a token that nobody knows yet: the host chooses it with a look at those before, or other
        choices fork before it. Nor where somebody has to give way: whoever is in flight may have
        ended there, and would be preempted for nothing."""
        if self._lacks_yield:
            return False
        awaiting = (req for req in self.running if req.num_tokens_in_flight)
        if any(req.is_sampled_by_host or req.forks_next for req in awaiting):
            return False
        return self._reclaimer.num_missing(()) <= self.blocks.num_free

    def schedule(self, now: float = 0.0) -> StepPlan:
        """Decide what the next step runs. `now`: monotonic seconds, like `Req.arrived_s`."""
        refused = self._expiries.pop(now, self._adapters.is_loaded)
        while True:
            step = self._plan(now, refused)
            if not step.scheduled and not self.has_rows_in_flight:
                # nothing runs while those that wait hold blocks that others want, or all that run
                # are prompts that wait for each other's
                is_idle = all(req in refused for req in self.running)
                if self._reclaimer.drop_held(step) if is_idle else self._reclaimer.reclaim():
                    continue
            self._lacks_yield, self.lacks_blocks = step.lacks_yield, step.lacks_blocks
            for item in step.scheduled:
                item.req.num_computed += item.num_new
                item.req.num_steps_in_flight += 1
                item.req.num_tokens_in_flight += item.samples
            return StepPlan(tuple(step.scheduled), self.memory.take_moves(), refused)

    def _plan(self, now: float, refused: dict[Req, Refusal]) -> StepDraft:
        must_land = self._reclaimer.pause(refused)
        self._reclaimer.relieve(refused)
        decoding = {
            req: self.memory.num_missing(req, 1)
            for req in self.running
            if req.is_decoding and req not in refused
        }
        step = StepDraft(
            self.waiting,
            budget=self._max_step_tokens - len(decoding),
            decoding=decoding,
            num_reserved=sum(decoding.values()),
            refused=refused,
            lacks_yield=must_land,
        )
        oldest = self.running[0] if self.running else None
        if oldest is not None and self._is_prompt(oldest, step):
            num_new = min(oldest.num_uncomputed, self._max_step_tokens)
            step.num_kept = self.memory.num_missing(oldest, num_new)
        self._schedule_prompts(step, now)
        prompts, step.scheduled = step.scheduled, []
        for req in step.decoding:
            self.memory.grow(req, 1)
            step.take(req, 1)
        step.scheduled += prompts
        return step

    @staticmethod
    def _is_prompt(req: Req, step: StepDraft) -> bool:
        """A running request that has more to compute than the last token it got."""
        return req not in step.decoding and req not in step.refused and not req.awaits_its_end

    def _schedule_prompts(self, step: StepDraft, now: float) -> None:
        """Spend the budget on prompts, tenant by tenant, the least served one first."""
        begun: dict[str, list[Req]] = {}
        for req in self.running:
            if self._is_prompt(req, step):
                begun.setdefault(req.tenant_id, []).append(req)
        open_tenants = {
            queue.tenant_id: queue
            for queue in self.waiting.tenants.values()
            if queue.tenant_id in begun
            or (queue.adapters and not self._admission.is_stalled(queue))
        }
        counters = self.waiting.counters
        # a full batch may have spent the budget, but who yields a place gives its token back
        while open_tenants and (step.budget > 0 or self._running.is_full):
            tenant_id = min(open_tenants, key=lambda t: (counters[t], open_tenants[t].num_running))
            queue = open_tenants[tenant_id]
            if step.budget > 0 and begun.get(tenant_id):
                self._continue_prompt(step, begun[tenant_id].pop(0))
            elif not self._admission.start_one(step, queue, now):
                del open_tenants[tenant_id]

    def _continue_prompt(self, step: StepDraft, req: Req) -> None:
        if req is self.running[0]:
            step.num_kept = 0
        room = self.memory.room_for(req, step.num_reserved + step.num_kept)
        num_new = min(req.num_uncomputed, step.budget, room)
        if num_new > 0:
            self.memory.grow(req, num_new)
            step.take(req, num_new)
            step.budget -= num_new
        else:
            step.is_closed = True  # who starts now would take blocks that this one waits for

    # ---- after the step ----

    def apply(
        self, plan: StepPlan, tokens: Mapping[Req, int], failed: Collection[Req] = ()
    ) -> None:
        """Take the step's sampled tokens; `tokens` has one for each req that samples, except the
        `failed` ones, whose blocks nobody else may find.

        A request that reached its end by token id or length gets its `finish_reason`; ending it is
        the caller's, who may also know of a stop string. One that ended while the step was in
        flight gets nothing, and its tenant the charge for that token back.
        """
        for item in plan.scheduled:
            req = item.req
            self._land(item, gets_token=req in tokens and not req.is_finished)
            if req.is_finished or req in failed:
                continue  # ended while the step ran, or about to be ended
            self.memory.publish(req, item.stop)
            if item.samples and req in tokens:
                if req.index == 0 and req.num_output_tokens == 0:
                    self._fork(req)
                req.token_ids.append(tokens[req])
                req.finish_reason = self._finish_reason(req)

    def _land(self, item: ScheduledReq, *, gets_token: bool) -> None:
        """The step is over; who ended before gives back what it had to hold for the step."""
        req = item.req
        req.num_steps_in_flight -= 1
        req.num_tokens_in_flight -= item.samples
        if item.samples and not gets_token:
            self.waiting.refund(req, ANSWER_TOKEN_COST)
        if req.is_finished and not req.num_steps_in_flight:
            self._running.leave(req)
            self.memory.free(req)

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
        if ends and (token in self._eos_token_ids or token in req.eos_token_ids):
            return "stop"
        if req.num_output_tokens >= sampling.max_tokens:
            return "length"
        return None

    def finish(self, req: Req, reason: FinishReason) -> None:
        """End a request wherever it is and give back all it holds, some of it later if a row of
        it is in flight.

        Others could have its blocks at once: steps run in the order in which they are launched, so
        whatever they write there comes after this row. But the row may turn out non-finite, and
        blocks are cleaned before they change hands; so they are kept until the step is applied, as
        the reference to the adapter has to be.
        """
        if req.state is ReqState.RUNNING:
            self._running.stop(req)
        elif req.state is ReqState.WAITING:
            self.waiting.drop(req)
        if not req.num_steps_in_flight:
            self.memory.free(req)
        req.state = ReqState.FINISHED
        req.finish_reason = reason

    def integrity(self) -> None:
        """Raise AssertionError when a block is lost, shared by mistake or held by nobody."""
        self.memory.integrity([*self.running, *self.waiting, *self._running.leaving])
        self._running.integrity()
        assert all(req.state is ReqState.WAITING for req in self.waiting)
