"""An engine's thread at work, whose steps a test may hold back, and requests for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

from weft.messages import EngineOutput, EngineRequest, SamplingParams

if TYPE_CHECKING:
    from tests.bench import Bench

    from weft.engine.plan import StepPlan
    from weft.engine.runner import PendingStep
    from weft.engine.worker import InProcessEngine
    from weft_adapters.pool import PooledAdapter


def start_worker(
    dense: Bench, run: Runner | None = None, **options: Any
) -> tuple[InProcessEngine, dict[str, str]]:
    """The engine, which the caller closes, and the digests of its adapters by their names."""
    # these need torch, which most of those who collect this module's users do without
    from weft.engine.config import EngineConfig
    from weft.engine.worker import InProcessEngine

    options = {"max_model_len": 256, "dtype": "float32", "device": "cpu", **options}
    built, digests = dense.build(**options)
    config = EngineConfig(dense.base_dir, dense.root / "store", **options)
    if run is not None:
        run.original = built.engine._runner.launch
        built.engine._runner.launch = run  # type: ignore[method-assign]
    worker = InProcessEngine(config, built)
    worker.start()
    return worker, digests


class Runner:
    """Stands before the real runner: holds a step back, or fails it, once warm-up is over."""

    original: Callable[[StepPlan, Mapping[str, PooledAdapter]], PendingStep]

    def __init__(self) -> None:
        self.may_run = threading.Event()
        self.is_held = threading.Event()
        self.error: Exception | None = None

    def __call__(self, plan: StepPlan, adapters: Mapping[str, PooledAdapter]) -> PendingStep:
        if plan.scheduled[0].req.request_id != "warm-up":
            self.is_held.set()
            assert self.may_run.wait(20), "the test never let the step run"
            if self.error is not None:
                raise self.error
        return self.original(plan, adapters)


def create_request(
    name: str, adapter: str | None = None, max_tokens: int = 8, prompt: tuple[int, ...] = (1, 2, 3)
) -> EngineRequest:
    sampling = SamplingParams(max_tokens, temperature=0, ignore_eos=True)
    return EngineRequest(name, "tenant", prompt, sampling, adapter)


async def collect(stream: AsyncIterator[EngineOutput]) -> list[EngineOutput]:
    async with asyncio.timeout(20):
        return [output async for output in stream]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)
