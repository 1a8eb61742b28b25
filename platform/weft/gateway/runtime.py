"""What the inference routes work with, and the app's life from start to drained.

Knows the engine only as an `EngineClient`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from weft.db.database import Database
from weft.db.ids import now
from weft.gateway.faults import draining_error
from weft.gateway.generation import Generation, Job
from weft.gateway.generations import Generations
from weft.gateway.metrics import EngineMetrics, GatewayMetrics
from weft.gateway.model_tokens import ModelTokenizers, ModelTokens
from weft.gateway.responses import StreamLimits
from weft.limits.admission import Admission
from weft.limits.book import LimitBook
from weft.limits.build import default_rates
from weft.limits.limiter import Limiter
from weft.limits.subjects import RequestSubjects
from weft.messages import EngineClient, EngineRequest, RequestVocabulary, SamplingParams
from weft.registry.merging import Merger, WantedMerge
from weft.registry.service import ResolvedModel, ServedBase, resolve_model
from weft.settings import ServerSettings
from weft.tenancy.principal import Principal
from weft.tokenizer import BaseTokenizer
from weft.usage.service import MeteredRequest, UsageRecorder

logger = logging.getLogger("weft.gateway")

# beyond the deadline, for aborted requests to end and be metered
_DRAIN_GRACE_S = 15.0


@dataclass(frozen=True, slots=True)
class Work:
    """One HTTP request's prompts, ready for the engine."""

    request_id: str
    model: ResolvedModel
    prompts: Sequence[tuple[int, ...]]
    sampling: Sequence[SamplingParams]
    priority: int
    cache_salt: str
    vocabulary: RequestVocabulary | None = None


class Gateway:
    """One app's engine, tokenizer and database, and whether it is draining."""

    def __init__(
        self,
        settings: ServerSettings,
        engine: EngineClient,
        tokenizer: BaseTokenizer,
        database: Database,
        limiter: Limiter,
        recorder: UsageRecorder,
        merger: Merger,
        read_config: Callable[[str], bytes],
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.tokenizer = tokenizer
        self.base = self.served_base(engine)
        self.metrics = GatewayMetrics(engine.info.base_name)
        self.engine_metrics = EngineMetrics(engine)
        self.recorder = recorder
        self.limits = StreamLimits(settings.keepalive_s, settings.stall_timeout_s)
        self._database, self._merger = database, merger
        self._tokenizers = ModelTokenizers(tokenizer, self.vocab_size, read_config)
        self.admission = Admission(
            limiter,
            LimitBook(database, default_rates(settings)),
            self.metrics,
            fails_open=settings.fail_open_limits,
        )
        self._generations = Generations(
            engine, self.recorder, self.admission, self.metrics, settings.max_stream_backlog_bytes
        )
        self.is_draining = False
        self.started_at = now()

    @property
    def vocab_size(self) -> int:
        size = self.engine.info.hf_config.get("vocab_size")
        return size if isinstance(size, int) else self.tokenizer.vocab_size

    @property
    def num_active(self) -> int:
        return self._generations.num_active

    @property
    def not_ready_reason(self) -> str:
        """A sentence, empty when requests can be served."""
        return "The server is draining." if self.is_draining else self.engine.not_ready_reason

    async def resolve(self, principal: Principal, model: str | WantedMerge) -> ResolvedModel:
        """What a request will run; a merge is made where it is not there yet."""
        if isinstance(model, WantedMerge):
            return await self._merger.resolve(principal, model)
        if model == self.base.name:  # is in no table
            return self.base.resolved
        async with self._database.reading() as session:
            return await resolve_model(session, principal, self.base, model)

    async def tokens_of(self, model: ResolvedModel) -> ModelTokens:
        return await self._tokenizers.of(model)

    async def admit(self, principal: Principal, work: Work) -> Generation:
        """Reserve, write ahead, and hand the prompts to the engine; all or none."""
        if self.is_draining:
            raise draining_error()
        ids = [work.request_id]
        if len(work.prompts) > 1:
            ids = [f"{work.request_id}-{i}" for i in range(len(work.prompts))]
        jobs = [
            self._job(principal, work, request_id, prompt, sampling)
            for request_id, prompt, sampling in zip(ids, work.prompts, work.sampling, strict=True)
        ]
        headers = await self.admission.reserve(
            self.subjects(principal, work.model.adapter_id),
            work.model.name.partition("@")[0],
            {job.request.request_id: _max_tokens(job.request) for job in jobs},
        )
        return await self._generations.start(jobs, headers)

    def subjects(self, principal: Principal, adapter_id: str | None = None) -> RequestSubjects:
        """Whom a request of this key counts for."""
        return RequestSubjects(
            tenant_id=principal.tenant_id,
            project_id=principal.project_id,
            key_id=principal.key_id,
            base=self.base.name,
            adapter_id=adapter_id,
        )

    async def drain(self, deadline_s: float) -> None:
        """Admit nothing more, let streams finish for `deadline_s`, end the rest, meter all."""
        self.is_draining = True
        try:
            async with asyncio.timeout(deadline_s + _DRAIN_GRACE_S):
                await self.engine.drain(deadline_s)
                await self._generations.join()
        except TimeoutError:
            # their pending rows stay, and become "lost" at the next start
            logger.error("%d requests did not end, or their usage was not written", self.num_active)

    async def close(self) -> None:
        """Stop what still runs and meter it; the engine stays its owner's."""
        self.is_draining = True
        await self._merger.close()
        await self._generations.close()
        await asyncio.to_thread(self._tokenizers.close)

    @staticmethod
    def served_base(engine: EngineClient) -> ServedBase:
        return ServedBase(engine.info.base_name, engine.info.base_digest)

    def _job(
        self,
        principal: Principal,
        work: Work,
        request_id: str,
        prompt: tuple[int, ...],
        sampling: SamplingParams,
    ) -> Job:
        model = work.model
        request = EngineRequest(
            request_id, principal.tenant_id, prompt, sampling, model.digest,
            priority=work.priority,
            queue_timeout_s=self.settings.queue_timeout_s,
            adapter_timeout_s=self.settings.adapter_timeout_s,
            timeout_s=self.settings.request_timeout_s,
            cache_salt=work.cache_salt,
            vocabulary=work.vocabulary,
        )  # fmt: skip
        metered = MeteredRequest(
            event_id=request_id,
            tenant_id=principal.tenant_id,
            project_id=principal.project_id,
            api_key_id=principal.key_id,
            model=model.name,
            base_model=model.base_name,
            adapter_id=model.adapter_id,
            adapter_version=model.version,
            adapter_digest=model.digest,
            num_prompt_tokens=len(prompt),
            max_completion_tokens=sampling.n * sampling.max_tokens,
        )
        return Job(request, metered)


def _max_tokens(request: EngineRequest) -> int:
    """The most that it can take: the prompt, and every choice at its longest."""
    return len(request.prompt_token_ids) + request.sampling.n * request.sampling.max_tokens


def get_gateway(request: Request) -> Gateway:
    """The app's gateway."""
    gateway: Gateway = request.app.state.gateway
    return gateway


async def _gateway(request: Request) -> Gateway:
    return get_gateway(request)


GatewayDep = Annotated[Gateway, Depends(_gateway)]
