"""The engine's step: schedule, run, postprocess. Single-threaded; `worker.py` gives it a thread.

It knows requests, adapters by digest and text; nothing of HTTP, tenants' names or money.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from weft.engine.blocks import BlockManager
from weft.engine.config import EngineConfig
from weft.engine.detokenizer import Detokenizer
from weft.engine.req import Req, ReqState
from weft.engine.runner import Runner
from weft.engine.scheduler import Scheduler, StepPlan
from weft.messages import EngineOutput, EngineRequest, FinishReason
from weft_adapters.pool import PooledAdapter
from weft_adapters.tiers import AdapterTiers

NON_FINITE = (
    "The model produced non-finite logits for this request; its adapter's weights may be too large "
    "for the engine's number format."
)

# those that no scrape has taken; more are dropped
MAX_OBSERVATIONS = 100_000


def _observe(values: list[float], value: float) -> None:
    if len(values) < MAX_OBSERVATIONS:
        values.append(value)


class TierResidency:
    """The scheduler's view of the adapter tiers, and the adapters that running requests hold."""

    def __init__(self, tiers: AdapterTiers) -> None:
        self._tiers = tiers
        self._references: dict[str, int] = {}
        self.held: dict[str, PooledAdapter] = {}

    def try_acquire(self, digest: str) -> bool:
        adapter = self._tiers.acquire(digest)
        if adapter is None:
            self._tiers.request(digest)
            return False
        self.held[digest] = adapter
        self._references[digest] = self._references.get(digest, 0) + 1
        return True

    def release(self, digest: str) -> None:
        self._tiers.release(digest)
        self._references[digest] -= 1
        if self._references[digest] == 0:
            del self._references[digest], self.held[digest]

    def failure(self, digest: str) -> str | None:
        error = self._tiers.failure(digest)
        return None if error is None else f"The adapter could not be loaded: {error}"


@dataclass(slots=True)
class EngineCounters:
    """Totals since start, and observations (seconds) since they were last taken."""

    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    num_steps: int = 0
    time_to_first_token: list[float] = field(default_factory=list)
    inter_token_latency: list[float] = field(default_factory=list)
    queue_time: list[float] = field(default_factory=list)


class Engine:
    """`add` requests, `step` until `has_work` is False; each step returns what became of them."""

    def __init__(
        self,
        config: EngineConfig,
        runner: Runner,
        tiers: AdapterTiers,
        decode: Callable[[Sequence[int]], str],
        *,
        num_blocks: int,
        max_model_len: int,
        vocab_size: int,
        eos_token_ids: frozenset[int],
    ) -> None:
        self._runner, self._tiers, self._decode = runner, tiers, decode
        self._check_integrity = config.check_integrity
        self._max_model_len, self._vocab_size = max_model_len, vocab_size
        self.adapters = TierResidency(tiers)
        self.scheduler = Scheduler(
            BlockManager(num_blocks, config.block_size),
            self.adapters,
            max_running=config.max_running,
            max_step_tokens=config.max_step_tokens,
            max_adapters_in_batch=config.max_adapters_in_batch,
            eos_token_ids=eos_token_ids,
        )
        self.counters = EngineCounters()
        self._reqs: dict[str, Req] = {}
        self._texts: dict[Req, Detokenizer] = {}

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def check(self, request: EngineRequest) -> None:
        """Raise ValueError for a request that can never run."""
        num_prompt = len(request.prompt_token_ids)
        total = num_prompt + request.sampling.max_tokens
        if num_prompt == 0:
            raise ValueError("The prompt is empty; it needs at least one token.")
        if total > self._max_model_len:
            raise ValueError(
                f"This model's maximum context length is {self._max_model_len} tokens, but the "
                f"request has {num_prompt} prompt tokens and asks for up to "
                f"{request.sampling.max_tokens} more."
            )
        if not self.scheduler.can_ever_run(total):
            raise ValueError(f"The KV cache is too small for a request of {total} tokens.")
        bad = next((t for t in request.prompt_token_ids if not 0 <= t < self._vocab_size), None)
        if bad is not None:
            raise ValueError(f"Token id {bad} is outside the vocabulary of {self._vocab_size}.")

    def add(self, request: EngineRequest) -> None:
        """Queue a request; ValueError when it can never run or its id is in use."""
        self.check(request)
        if request.request_id in self._reqs:
            raise ValueError(f"Request id {request.request_id} is already in use.")
        req = Req(request, arrived_s=time.monotonic())
        self._reqs[request.request_id] = req
        self._texts[req] = Detokenizer(self._decode, request.sampling.stop)
        if request.adapter_digest is not None:
            self._tiers.request(request.adapter_digest)
        self.scheduler.add(req)

    def abort(self, request_id: str) -> EngineOutput | None:
        """End a request now; None when it is not there (any more)."""
        req = self._reqs.get(request_id)
        return None if req is None else self._finish(req, "abort", [])

    def step(self) -> list[EngineOutput]:
        plan = self.scheduler.schedule()
        outputs = [self._reject(req, reason) for req, reason in plan.rejected.items()]
        if plan.scheduled:
            now = time.monotonic()
            for item in plan.scheduled:
                if item.req.started_s is None:
                    item.req.started_s = now
                    self.counters.num_prompt_tokens += item.req.num_prompt_tokens
                    _observe(self.counters.queue_time, now - item.req.arrived_s)
            tokens = self._runner.run(plan, self.adapters.held)
            outputs += self._postprocess(plan, tokens)
            self.counters.num_steps += 1
        if self._check_integrity:
            self.scheduler.integrity()
            self._tiers.integrity()
        return outputs

    def _postprocess(self, plan: StepPlan, tokens: dict[Req, int | None]) -> list[EngineOutput]:
        outputs = []
        failed = [req for req, token in tokens.items() if token is None]
        self.scheduler.apply(plan, {r: t for r, t in tokens.items() if t is not None})
        now = time.monotonic()
        for req, token in tokens.items():
            if token is not None and req.state is ReqState.RUNNING:
                self._count_token(req, now)
                outputs.append(self._advance(req, token))
        for req in failed:
            self._runner.clean(req.blocks)
            outputs.append(self._finish(req, "error", [], NON_FINITE))
        return outputs

    def _count_token(self, req: Req, now: float) -> None:
        self.counters.num_generation_tokens += 1
        if req.first_token_s is None:
            req.first_token_s = now
            _observe(self.counters.time_to_first_token, now - req.arrived_s)
        if req.last_token_s is not None:
            _observe(self.counters.inter_token_latency, now - req.last_token_s)
        req.last_token_s = now

    def _advance(self, req: Req, token: int) -> EngineOutput:
        text = self._texts[req]
        text.add(token)
        if text.stopped:
            return self._finish(req, "stop", [token])
        if req.finish_reason is not None:
            return self._finish(req, req.finish_reason, [token])
        return EngineOutput(req.request_id, text.give(final=False), (token,), req.usage)

    def _finish(
        self, req: Req, reason: FinishReason, token_ids: list[int], error: str | None = None
    ) -> EngineOutput:
        text = self._texts.pop(req)
        text.finish()
        if text.stopped and reason == "length":
            reason = "stop"
        del self._reqs[req.request_id]
        self.scheduler.finish(req, reason)
        return EngineOutput(
            req.request_id, text.give(final=True), tuple(token_ids), req.usage, reason, error
        )

    def _reject(self, req: Req, reason: str) -> EngineOutput:
        del self._reqs[req.request_id], self._texts[req]
        if req.adapter_digest is not None:
            self._tiers.forget(req.adapter_digest)  # the next request tries anew
        return EngineOutput(req.request_id, "", (), req.usage, "error", reason)

    def integrity(self) -> None:
        """Raise AssertionError when an invariant of blocks, pages or queues does not hold."""
        self.scheduler.integrity()
        self._tiers.integrity()
