"""The engine's step: schedule, launch, postprocess. Single-threaded; `worker.py` gives it a thread.

What is launched runs on the device until it is collected. With asynchronous scheduling that is one
`step` later: the next step is scheduled and launched before, wherever the scheduler can look ahead,
and the device always has work. Without, a step is collected as soon as it is launched.

It knows requests, adapters by digest and text; nothing of HTTP, tenants' names or money.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from weft.engine.blocks import BlockManager
from weft.engine.config import EngineConfig
from weft.engine.detokenizer import Detokenizer
from weft.engine.grammar import Grammars
from weft.engine.lending import BlockLending
from weft.engine.memory_plan import MemoryPlan
from weft.engine.metrics import EngineCounters, observe
from weft.engine.plan import Refusal, StepPlan
from weft.engine.prefix import PrefixRoots
from weft.engine.req import Req, ReqState, create_choices
from weft.engine.residency import TierResidency
from weft.engine.runner import PendingStep, Runner
from weft.engine.sampler import NO_TOKEN_ALLOWED, Sampled
from weft.engine.scheduler import Scheduler
from weft.messages import EngineOutput, EngineRequest, FinishReason, TokenLogprobs
from weft.own_tokenizer import TokenDecoder
from weft.tokenizer import BaseTokenizer
from weft_adapters.tiers import AdapterTiers


class Engine:
    """`add` requests, `step` until `has_work` is False; each step returns what became of them."""

    def __init__(
        self,
        config: EngineConfig,
        runner: Runner,
        tiers: AdapterTiers,
        tokenizer: BaseTokenizer,
        grammars: Grammars,
        *,
        is_async: bool,
        memory: MemoryPlan,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        prefix_roots: PrefixRoots | None,
    ) -> None:
        self._runner, self._tiers, self._tokenizer = runner, tiers, tokenizer
        self.grammars = grammars
        self._check_integrity = config.check_integrity
        self._max_model_len, self._vocab_size = memory.max_model_len, vocab_size
        self.adapters = TierResidency(tiers, config.adapter_load_cost)
        self.scheduler = Scheduler(
            BlockManager(
                memory.max_blocks, config.block_size, memory.max_blocks - memory.num_blocks
            ),
            self.adapters,
            max_running=config.max_running,
            max_step_tokens=config.max_step_tokens,
            max_adapters_in_batch=config.max_adapters_in_batch,
            eos_token_ids=eos_token_ids,
            prefix_roots=prefix_roots,
            num_host_blocks=memory.num_host_blocks,
            max_running_per_tenant=config.max_running_per_tenant,
        )
        self._lending = None
        if tiers.exchange is not None:
            self._lending = BlockLending(self.scheduler, tiers.exchange, memory.min_blocks)
        self.counters = EngineCounters()
        self._reqs: dict[str, list[Req]] = {}
        self._texts: dict[Req, Detokenizer] = {}
        self._max_in_flight = 1 if is_async else 0  # when `step` returns
        self._in_flight: deque[tuple[StepPlan, PendingStep]] = deque()
        self.is_stalled = False

    @property
    def has_work(self) -> bool:
        return bool(self._in_flight) or self.scheduler.has_work

    def warm_up(self) -> None:
        """Do what the first steps would otherwise wait for."""
        self._runner.warm_up()

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
        sampling = request.sampling
        biased = [token for token, _ in sampling.logit_bias]
        own = request.vocabulary
        vocab_size = self._vocab_size if own is None else own.num_tokens
        ends = frozenset[int]() if own is None else own.eos_token_ids
        for tokens in (request.prompt_token_ids, sampling.stop_token_ids, biased, ends):
            bad = next((t for t in tokens if not 0 <= t < vocab_size), None)
            if bad is not None:
                raise ValueError(f"Token id {bad} is outside the vocabulary of {vocab_size}.")
        if sampling.grammar is not None:
            self.grammars.compile(sampling.grammar)

    def add(self, request: EngineRequest) -> None:
        """Queue a request; ValueError when it can never run or its id is in use."""
        self.check(request)
        if request.request_id in self._reqs:
            raise ValueError(f"Request id {request.request_id} is already in use.")
        choices = create_choices(request, time.monotonic())
        self._reqs[request.request_id] = choices
        for req in choices:
            sampling = request.sampling
            decode = self._decoder_of(request)
            self._texts[req] = Detokenizer(decode, sampling.stop, sampling.min_tokens)
            if sampling.grammar is not None:
                req.grammar = self.grammars.create_state(sampling.grammar)
        if request.adapter_digest is not None:
            self._tiers.request(request.adapter_digest, request.tenant_id, is_new=True)
        self.scheduler.add(choices[0])

    def _decoder_of(self, request: EngineRequest) -> Callable[[Sequence[int]], str]:
        if request.vocabulary is None or not request.vocabulary.texts:
            return self._tokenizer.decode
        return TokenDecoder(self._tokenizer, dict(request.vocabulary.texts)).decode

    def abort(self, request_id: str) -> list[EngineOutput]:
        """End a request now, each choice that has not ended yet; empty when it is not there."""
        choices = self._reqs.get(request_id, [])
        unfinished = [req for req in choices if req.state is not ReqState.FINISHED]
        outputs = [self._finish(req, "abort", []) for req in unfinished]
        if unfinished and unfinished[0].adapter_digest is not None:
            self._withdraw(unfinished[0].adapter_digest)
        return outputs

    def _withdraw(self, digest: str) -> None:
        """Let go of an adapter on its way that no other request waits for."""
        if not any(choices[0].adapter_digest == digest for choices in self._reqs.values()):
            self._tiers.withdraw(digest)

    def step(self) -> list[EngineOutput]:
        """`is_stalled` says afterwards that there was nothing to do: all that waits waits for an
        adapter."""
        outputs: list[EngineOutput] = []
        had_steps = bool(self._in_flight)
        if had_steps and not self.scheduler.can_look_ahead:
            outputs += self.settle()
        if self._lending is not None and not self._in_flight:
            self._lending.balance()
        now = time.monotonic()
        self.adapters.expect(self.scheduler.waiting, now)
        plan = self.scheduler.schedule(now)
        outputs += self._refuse(plan)
        is_launched = bool(plan.scheduled or plan.moves)
        if is_launched:
            self._tiers.pace.note_step()
            self._note_starts(plan)
            self._in_flight.append((plan, self._runner.launch(plan, self.adapters.held)))
            self.counters.num_steps += 1
        outputs += self.settle(self._max_in_flight if is_launched else 0)
        self.is_stalled = not (had_steps or is_launched or outputs)
        if self._check_integrity:
            self.integrity()
        return outputs

    def settle(self, may_keep: int = 0) -> list[EngineOutput]:
        """Collect the steps in flight, the first one first, until `may_keep` are left."""
        outputs = []
        while len(self._in_flight) > may_keep:
            plan, pending = self._in_flight.popleft()
            outputs += self._postprocess(plan, pending.collect())
        return outputs

    def _note_starts(self, plan: StepPlan) -> None:
        now = time.monotonic()
        for item in plan.scheduled:
            if item.req.started_s is not None:
                continue
            item.req.started_s = now
            if item.req.index == 0 and item.req.tenant_id:
                self.counters.num_prompt_tokens += item.req.num_prompt_tokens
                self.counters.num_cached_prompt_tokens += item.req.num_cached_tokens
                observe(self.counters.queue_time, now - item.req.arrived_s)

    def _refuse(self, plan: StepPlan) -> list[EngineOutput]:
        """End the requests that the plan refuses, each with all its choices."""
        outputs = []
        for req, refusal in plan.refused.items():
            if refusal.code == "adapter_unavailable" and req.adapter_digest is not None:
                self._tiers.forget(req.adapter_digest)  # the next request tries anew
            outputs += self._fail(req, refusal)
        return outputs

    def _fail(self, req: Req, refusal: Refusal) -> list[EngineOutput]:
        unfinished = [r for r in req.choices if r.state is not ReqState.FINISHED]
        return [self._finish(r, "error", [], refusal) for r in unfinished]

    def _postprocess(self, plan: StepPlan, sampled: dict[Req, Sampled]) -> list[EngineOutput]:
        # before any of them gives its blocks back, those that ended while the step ran included
        bad = [
            block
            for req, row in sampled.items() if row.failure is not None
            for block in self.scheduler.blocks.private(req.blocks)
        ]  # fmt: skip
        if bad:
            self._runner.clean(bad)
        outputs, now = [], time.monotonic()
        sampled = {req: row for req, row in sampled.items() if not req.is_finished}
        tokens = {req: row.token for req, row in sampled.items() if row.token is not None}
        failed = {req: row.failure for req, row in sampled.items() if row.failure is not None}
        self.scheduler.apply(plan, tokens, list(failed))
        for req, token in tokens.items():
            if req.state is not ReqState.RUNNING:
                continue
            if req.grammar is not None and not req.grammar.accept(token):
                req.token_ids.pop()  # neither delivered nor counted
                failed[req] = NO_TOKEN_ALLOWED
                continue
            self._count_token(req, now)
            outputs.append(self._advance(req, token, sampled[req].logprobs))
        for req, failure in failed.items():  # ends the other choices, too: they had their tokens
            outputs += self._fail(req, failure)
        return outputs

    def _count_token(self, req: Req, now: float) -> None:
        if not req.tenant_id:
            return  # the platform's own
        self.counters.num_generation_tokens += 1
        if req.first_token_s is None:
            req.first_token_s = now
            observe(self.counters.time_to_first_token, now - req.arrived_s)
        if req.last_token_s is not None:
            observe(self.counters.inter_token_latency, now - req.last_token_s)
        req.last_token_s = now

    def _advance(self, req: Req, token: int, logprobs: TokenLogprobs | None) -> EngineOutput:
        text = self._texts[req]
        text.add(token)
        shown = () if logprobs is None else (logprobs,)
        if text.stopped:
            return self._finish(req, "stop", [token], logprobs=shown)
        if req.finish_reason is not None:
            return self._finish(req, req.finish_reason, [token], logprobs=shown)
        return EngineOutput(
            request_id=req.request_id,
            text=text.give(final=False),
            token_ids=(token,),
            usage=req.usage,
            index=req.index,
            logprobs=shown,
        )

    def _finish(
        self,
        req: Req,
        reason: FinishReason,
        token_ids: list[int],
        refusal: Refusal | None = None,
        logprobs: tuple[TokenLogprobs, ...] = (),
    ) -> EngineOutput:
        text = self._texts.pop(req)
        text.finish()
        if text.stopped and reason == "length":
            reason = "stop"
        self.scheduler.finish(req, reason)
        is_last = all(choice.state is ReqState.FINISHED for choice in req.choices)
        if is_last:
            del self._reqs[req.request_id]
        return EngineOutput(
            request_id=req.request_id,
            text=text.give(final=True),
            token_ids=tuple(token_ids),
            usage=req.usage,
            finish_reason=reason,
            error=None if refusal is None else refusal.reason,
            error_code=None if refusal is None else refusal.code,
            index=req.index,
            is_last=is_last,
            logprobs=logprobs,
        )

    def integrity(self) -> None:
        """Raise AssertionError when an invariant of blocks, pages or queues does not hold."""
        self.scheduler.integrity()
        self._tiers.integrity()
