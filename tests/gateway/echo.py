"""An engine that echoes, for tests of what is before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection

from tests.tiny import BASE, BASE_DIGEST, HF_CONFIG

from weft.messages import (
    AdapterPlacement,
    EngineDrainingError,
    EngineInfo,
    EngineOutput,
    EngineQueueFullError,
    EngineRequest,
    EngineStats,
    ErrorCode,
    FinishReason,
    Grammar,
    TokenLogprobs,
    Usage,
)


class EchoEngine:
    """Answers with the prompt's own bytes, one token each `delay_s`; faults on demand."""

    def __init__(self) -> None:
        self.info = EngineInfo(
            base_name=BASE,
            base_digest=BASE_DIGEST,
            hf_config=HF_CONFIG,
            max_model_len=128,
            max_adapter_rank=16,
            dtype="float32",
            device="cpu",
            kernels="torch",
            memory_bytes={"weights": 1, "kv": 2, "adapters": 3},
        )
        self.delay_s = 0.0
        self.first_delay_s = 0.0
        self.not_ready_reason = ""
        self.admission_error: Exception | None = None
        self.fails_after: int | None = None
        self.max_waiting = 1000
        self.requests: list[EngineRequest] = []
        self.aborted: list[str] = []
        self.prefetched: list[str] = []
        self.pinned: set[str] = set()
        self.discarded: list[str] = []
        self.error_code: ErrorCode = "non_finite"
        self.grammar_error: Exception | None = None
        self.grammars: list[Grammar] = []
        self.adapter_placements: list[AdapterPlacement] = []
        self.unloaded: list[str] = []
        self._resident: set[str] = set()
        self.running_adapters: tuple[str, ...] = ()
        self.waiting_adapters: tuple[str, ...] = ()
        self.finished: dict[str, EngineOutput] = {}
        self.id_offset = 0  # of the tokens it says that it has sampled
        self._running: set[str] = set()
        self._draining = False
        self._num_tokens = 0
        self._num_prompt_tokens = 0

    @property
    def is_ready(self) -> bool:
        return not self.not_ready_reason

    async def prepare_grammar(self, grammar: Grammar) -> None:
        if self.grammar_error is not None:
            raise self.grammar_error
        self.grammars.append(grammar)

    async def generate(self, req: EngineRequest) -> AsyncIterator[EngineOutput]:
        if self.admission_error is not None:
            raise self.admission_error
        if self._draining:
            raise EngineDrainingError("draining")
        if len(self._running) >= self.max_waiting:
            raise EngineQueueFullError(self.max_waiting)
        self.requests.append(req)
        self._running.add(req.request_id)
        return self._outputs(req)

    async def _outputs(self, req: EngineRequest) -> AsyncIterator[EngineOutput]:
        """All choices side by side, the last one's output of a step last."""
        body = [t for t in req.prompt_token_ids if t < 256]
        num_sampled = 0
        await asyncio.sleep(self.first_delay_s)
        for i in range(req.sampling.max_tokens):
            await asyncio.sleep(self.delay_s)
            reason: FinishReason | None = None
            if req.request_id in self.aborted:
                reason = "abort"
            elif self.fails_after == i:
                reason = "error"
            elif i + 1 == req.sampling.max_tokens:
                reason = "length"
            elif i + 1 == len(body) and not req.sampling.ignore_eos:
                reason = "stop"
            token = None if reason in ("abort", "error") else body[i % len(body)]
            for index in range(req.sampling.n):
                num_sampled += token is not None
                self._num_tokens += token is not None
                yield self._output(req, index, token, reason, num_sampled)
            if reason is not None:
                return

    def _output(
        self, req: EngineRequest, index: int, token: int | None, reason: FinishReason | None,
        num_sampled: int,
    ) -> EngineOutput:  # fmt: skip
        logprobs: tuple[TokenLogprobs, ...] = ()
        if token is not None and req.sampling.logprobs is not None:
            best = tuple((token + k, -0.5 - k) for k in range(req.sampling.logprobs))
            logprobs = (TokenLogprobs(token + self.id_offset, -0.5, best),)
        output = EngineOutput(
            req.request_id,
            "" if token is None else chr(token),
            () if token is None else (token,),
            Usage(len(req.prompt_token_ids), num_sampled, 1),
            reason,
            "the logits are not finite" if reason == "error" else None,
            self.error_code if reason == "error" else None,
            index,
            reason is not None and index == req.sampling.n - 1,
            logprobs,
        )
        if output.is_last:
            self._running.discard(req.request_id)
            self._num_prompt_tokens += len(req.prompt_token_ids)
            self.finished[req.request_id] = output
        return output

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    async def stats(self, *, drain: bool = False) -> EngineStats:
        return self.snapshot(drain=drain)

    def snapshot(self, *, drain: bool = False) -> EngineStats:
        observed = {"time_to_first_token": (0.02,), "adapter_load_time": (0.3,)} if drain else {}
        return EngineStats(
            num_running=len(self._running),
            num_waiting=0,
            num_blocks_total=10,
            num_blocks_free=5,
            num_pages_total=8,
            num_pages_free=6,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generation_tokens=self._num_tokens,
            num_preemptions=0,
            running_adapters=self.running_adapters,
            waiting_adapters=self.waiting_adapters,
            adapter_states={"sha256:x": "device"},
            histograms=observed,
        )

    async def placements(self, adapter_digest: str | None = None) -> list[AdapterPlacement]:
        found = self.adapter_placements
        return found if adapter_digest is None else self._placement(adapter_digest)

    def _placement(self, digest: str) -> list[AdapterPlacement]:
        """A prefetched adapter is on the device, unless the test says otherwise."""
        told = [p for p in self.adapter_placements if p.adapter_digest == digest]
        here = AdapterPlacement(digest, "device", "gpu")
        absent = AdapterPlacement(digest, "absent", "remote")
        return told or [here if digest in self._resident else absent]

    async def unload_adapter(self, adapter_digest: str) -> None:
        self._resident.discard(adapter_digest)
        self.unloaded.append(adapter_digest)

    def prefetch_adapter(self, adapter_digest: str) -> None:
        self.prefetched.append(adapter_digest)
        self._resident.add(adapter_digest)

    async def discard_adapter(self, adapter_digest: str) -> None:
        await self.unload_adapter(adapter_digest)
        self.discarded.append(adapter_digest)

    async def pin_adapters(self, adapter_digests: Collection[str]) -> None:
        self.pinned = set(adapter_digests)

    async def drain(self, deadline_s: float) -> None:
        self._draining = True
        try:
            async with asyncio.timeout(deadline_s):
                while self._running:
                    await asyncio.sleep(0.005)
        except TimeoutError:
            for request_id in list(self._running):
                self.abort(request_id)
