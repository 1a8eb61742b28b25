"""Requests that overtake each other do so for a while only. Plain scheduler, no model."""

from __future__ import annotations

from weft.engine.admission import MAX_PASSED_OVER
from weft.engine.blocks import BlockManager
from weft.engine.req import Req
from weft.engine.scheduler import Scheduler
from weft.messages import EngineRequest, SamplingParams


class Resident:
    """Every adapter is on the device."""

    num_changes = 0

    def try_acquire(self, digest: str) -> bool:
        return True

    def release(self, digest: str) -> None: ...

    def is_loaded(self, digest: str) -> bool:
        return True

    def is_leaving(self, digest: str) -> bool:
        return False

    def failure(self, digest: str) -> str | None:
        return None

    def take_load_cost(self, digest: str) -> float:
        return 0.0


def create_req(name: str, digest: str | None, max_tokens: int = 4) -> Req:
    sampling = SamplingParams(max_tokens, temperature=0, ignore_eos=True)
    return Req(EngineRequest(name, "tenant", (1, 2), sampling, digest), 0.0)


def test_a_batch_that_is_always_full_of_other_adapters_starves_nobody() -> None:
    scheduler = Scheduler(
        BlockManager(96, 16),
        Resident(),
        max_running=16,
        max_step_tokens=64,
        max_adapters_in_batch=2,
        eos_token_ids=frozenset(),
    )
    waits = create_req("waits", "c")
    num_others = num_base = 0
    for step in range(3 * MAX_PASSED_OVER):
        if step == 2:
            scheduler.add(waits)
        scheduler.add(create_req(f"base{step}", None))
        if step % 3 == 0:
            for digest in ("a", "b"):  # each always has some that run
                scheduler.add(create_req(f"{digest}{step}", digest, max_tokens=8))
        plan = scheduler.schedule()
        if waits in scheduler.running:
            break
        scheduler.apply(plan, {item.req: 5 for item in plan.scheduled if item.samples})
        for item in plan.scheduled:
            if item.req.finish_reason is not None:
                num_base += item.req.adapter_digest is None
                num_others += item.req.adapter_digest is not None
                scheduler.finish(item.req, item.req.finish_reason)
    assert waits in scheduler.running
    assert step > MAX_PASSED_OVER, "it overtook nobody before its time"
    assert num_others > 50
    assert num_base > 20
    scheduler.integrity()
