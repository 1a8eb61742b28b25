"""Who runs in the next step: continuous batching with chunked prefill. Plain Python, no tensors.

`schedule()` returns a plan, the engine runs it, `apply(plan, tokens)` takes the sampled tokens.
Running requests go first, in the order they started; then waiting ones join in order of arrival. A
request whose adapter is not on the device yet is skipped, not waited for. One that found the batch
full of other adapters for many steps is not overtaken any more. When blocks run out, the request
that started last gives its own back and is recomputed later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from weft.engine.blocks import BlockManager
from weft.engine.req import Req, ReqState
from weft.messages import FinishReason

# so many steps may a request find the batch full of other adapters before it is its turn
MAX_PASSED_OVER = 100


class AdapterResidency(Protocol):
    """What the scheduler asks of the adapter tiers; no call blocks."""

    def try_acquire(self, digest: str) -> bool:
        """Take a reference if the adapter is on the device; else have it fetched and say False."""

    def release(self, digest: str) -> None:
        """Give one reference back."""

    def failure(self, digest: str) -> str | None:
        """Why the adapter cannot be loaded, as a sentence; None while it may still come."""


@dataclass(frozen=True, slots=True)
class ScheduledReq:
    """A request's part of a step: tokens `[start, start + num_new)` are computed.

    `samples` is True when they reach the end, so that the step yields the next token.
    """

    req: Req
    start: int
    num_new: int
    samples: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step runs. `rejected` maps requests that can never run to the reason."""

    scheduled: tuple[ScheduledReq, ...]
    rejected: Mapping[Req, str]

    @property
    def num_tokens(self) -> int:
        return sum(item.num_new for item in self.scheduled)


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
    ) -> None:
        if max_running < 1 or max_step_tokens < max_running or max_adapters_in_batch < 1:
            raise ValueError(
                f"max_running={max_running} and max_adapters_in_batch={max_adapters_in_batch} must "
                f"be at least 1 and max_step_tokens={max_step_tokens} at least max_running"
            )
        self.blocks = blocks
        self._adapters = adapters
        self._max_running = max_running
        self._max_step_tokens = max_step_tokens
        self._max_adapters_in_batch = max_adapters_in_batch
        self._eos_token_ids = eos_token_ids
        self.waiting: deque[Req] = deque()
        self.running: list[Req] = []
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def can_ever_run(self, num_tokens: int) -> bool:
        return self.blocks.num_needed(num_tokens) <= self.blocks.num_usable

    def add(self, req: Req) -> None:
        self.waiting.append(req)

    def schedule(self) -> StepPlan:
        scheduled: list[ScheduledReq] = []
        budget = self._max_step_tokens
        # a preemption takes requests off the end of `running`
        position = 0
        while position < len(self.running):
            req = self.running[position]
            num_new = min(req.num_uncomputed, budget)
            if num_new == 0:
                break
            if not self._make_room(req, num_new):
                break  # req itself was preempted, and with it all that started later
            scheduled.append(self._scheduled(req, num_new))
            budget -= num_new
            position += 1
        rejected = self._admit(scheduled, budget)
        return StepPlan(tuple(scheduled), rejected)

    def _make_room(self, req: Req, num_new: int) -> bool:
        """Give `req` blocks for `num_new` more tokens, at the cost of whoever started last."""
        needed = self.blocks.num_needed(req.num_computed + num_new) - len(req.blocks)
        while not self.blocks.can_allocate(needed):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is req:
                return False
        if needed > 0:
            req.blocks += self.blocks.allocate(needed)
        return True

    def _preempt(self, req: Req) -> None:
        self.running.remove(req)
        self._give_back(req)
        req.num_computed = 0
        req.num_preemptions += 1
        self.num_preemptions += 1
        req.state = ReqState.WAITING
        self.waiting.appendleft(req)

    def _give_back(self, req: Req) -> None:
        self.blocks.release(req.blocks)
        req.blocks = []
        if req.adapter_digest is not None:
            self._adapters.release(req.adapter_digest)

    def _admit(self, scheduled: list[ScheduledReq], budget: int) -> dict[Req, str]:
        rejected: dict[Req, str] = {}
        passed: list[Req] = []
        digests = {r.adapter_digest for r in self.running if r.adapter_digest is not None}
        is_held = False  # a request that was passed over too often waits for an adapter to leave
        while self.waiting and budget > 0 and len(self.running) < self._max_running:
            req = self.waiting.popleft()
            digest = req.adapter_digest
            if digest is not None and (reason := self._adapters.failure(digest)) is not None:
                rejected[req] = reason
                req.state = ReqState.FINISHED
                continue
            if digest is not None and is_held:
                passed.append(req)
                continue
            num_new = min(req.num_uncomputed, budget)
            if not self.blocks.can_allocate(self.blocks.num_needed(num_new)):
                passed.append(req)
                break  # letting smaller requests overtake could starve this one
            if digest is not None:
                full = len(digests) >= self._max_adapters_in_batch and digest not in digests
                # asked also when the batch is full, so that the adapter is there when it is not
                if not self._adapters.try_acquire(digest):
                    passed.append(req)
                    continue
                if full:
                    self._adapters.release(digest)
                    passed.append(req)
                    req.num_passed_over += 1
                    is_held = req.num_passed_over > MAX_PASSED_OVER
                    continue
                digests.add(digest)
            req.blocks = self.blocks.allocate(self.blocks.num_needed(num_new))
            req.state = ReqState.RUNNING
            self.running.append(req)
            scheduled.append(self._scheduled(req, num_new))
            budget -= num_new
        self.waiting.extendleft(reversed(passed))
        return rejected

    @staticmethod
    def _scheduled(req: Req, num_new: int) -> ScheduledReq:
        return ScheduledReq(req, req.num_computed, num_new, num_new == req.num_uncomputed)

    def apply(self, plan: StepPlan, tokens: Mapping[Req, int]) -> None:
        """Take the step's sampled tokens; `tokens` has one for each req that samples.

        A request that reached its end by token id or length gets its `finish_reason`; ending it is
        the caller's, who may also know of a stop string.
        """
        for item in plan.scheduled:
            req = item.req
            if req.state is not ReqState.RUNNING:
                continue  # aborted while the step ran
            req.num_computed = item.start + item.num_new
            if item.samples and req in tokens:
                req.token_ids.append(tokens[req])
                req.finish_reason = self._finish_reason(req)

    def _finish_reason(self, req: Req) -> FinishReason | None:
        sampling = req.request.sampling
        if not sampling.ignore_eos and req.token_ids[-1] in self._eos_token_ids:
            return "stop"
        if req.num_output_tokens >= sampling.max_tokens:
            return "length"
        return None

    def finish(self, req: Req, reason: FinishReason) -> None:
        """End a request wherever it is and give back all it holds."""
        if req.state is ReqState.RUNNING:
            self.running.remove(req)
            self._give_back(req)
        elif req.state is ReqState.WAITING:
            self.waiting.remove(req)
        req.state = ReqState.FINISHED
        req.finish_reason = reason

    def integrity(self) -> None:
        """Raise AssertionError when a block is lost, shared by mistake or held by nobody."""
        self.blocks.integrity()
        held = [block for req in self.running for block in req.blocks]
        assert len(held) == len(set(held)), "two requests hold one block"
        assert len(held) == self.blocks.num_usable - self.blocks.num_free, "a block has no holder"
        assert not any(req.blocks for req in self.waiting), "a waiting request holds blocks"
        assert all(req.num_computed <= len(req.blocks) * self.blocks.block_size
                   for req in self.running), "a token lies outside its blocks"  # fmt: skip
