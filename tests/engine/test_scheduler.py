"""The scheduler's promises, on value objects alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.engine.blocks import BlockManager
from weft.engine.plan import Refusal, StepPlan
from weft.engine.req import Req, ReqState
from weft.engine.scheduler import Scheduler
from weft.messages import EngineRequest, SamplingParams

EOS = 99


@dataclass
class Residency:
    """Adapters that are on the device, and how many references each has."""

    resident: set[str] = field(default_factory=set)
    broken: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    references: dict[str, int] = field(default_factory=dict)
    load_costs: dict[str, float] = field(default_factory=dict)

    @property
    def num_changes(self) -> int:
        return hash((frozenset(self.resident), frozenset(self.broken)))

    def try_acquire(self, digest: str) -> bool:
        self.asked.append(digest)
        if digest not in self.resident:
            return False
        self.references[digest] = self.references.get(digest, 0) + 1
        return True

    def release(self, digest: str) -> None:
        self.references[digest] -= 1
        assert self.references[digest] >= 0

    def is_loaded(self, digest: str) -> bool:
        return digest in self.resident

    def is_leaving(self, digest: str) -> bool:
        return False

    def failure(self, digest: str) -> str | None:
        return self.broken.get(digest)

    def take_load_cost(self, digest: str) -> float:
        return self.load_costs.pop(digest, 0.0)


def create_scheduler(
    residency: Residency | None = None,
    *,
    num_blocks: int = 65,
    max_running: int = 8,
    max_step_tokens: int = 32,
    max_adapters_in_batch: int = 4,
) -> Scheduler:
    return Scheduler(
        BlockManager(num_blocks, block_size=4),
        residency or Residency(),
        max_running=max_running,
        max_step_tokens=max_step_tokens,
        max_adapters_in_batch=max_adapters_in_batch,
        eos_token_ids=frozenset({EOS}),
    )


def create_req(name: str, prompt_len: int, max_tokens: int, adapter: str | None = None) -> Req:
    sampling = SamplingParams(max_tokens=max_tokens)
    return Req(EngineRequest(name, "t", tuple(range(prompt_len)), sampling, adapter), 0.0)


def run_step(scheduler: Scheduler, token: int = 1) -> StepPlan:
    """Schedule, pretend that every request sampled `token`, end what is at its end."""
    plan = scheduler.schedule()
    scheduler.apply(plan, {item.req: token for item in plan.scheduled if item.samples})
    for item in plan.scheduled:
        if item.req.state is ReqState.RUNNING and item.req.finish_reason is not None:
            scheduler.finish(item.req, item.req.finish_reason)
    scheduler.integrity()
    return plan


def test_a_long_prompt_is_computed_in_chunks_of_the_step_budget() -> None:
    scheduler = create_scheduler(max_step_tokens=8, max_running=8)
    scheduler.add(create_req("a", 20, 2))
    sizes = [[(i.start, i.num_new, i.samples) for i in run_step(scheduler).scheduled]
             for _ in range(4)]  # fmt: skip
    assert sizes == [[(0, 8, False)], [(8, 8, False)], [(16, 4, True)], [(20, 1, True)]]
    assert not scheduler.has_work


def test_running_requests_decode_while_a_new_prompt_joins() -> None:
    scheduler = create_scheduler(max_step_tokens=8)
    scheduler.add(create_req("a", 4, 10))
    run_step(scheduler)
    scheduler.add(create_req("b", 12, 10))
    plan = run_step(scheduler)
    assert [(i.req.request_id, i.num_new) for i in plan.scheduled] == [("a", 1), ("b", 7)]


def test_a_request_behind_a_cold_adapter_is_not_held_up() -> None:
    residency = Residency(resident={"warm"})
    scheduler = create_scheduler(residency)
    scheduler.add(create_req("cold", 4, 4, "cold"))
    scheduler.add(create_req("warm", 4, 4, "warm"))
    assert [i.req.request_id for i in run_step(scheduler).scheduled] == ["warm"]
    assert "cold" in residency.asked
    residency.resident.add("cold")
    assert {i.req.request_id for i in run_step(scheduler).scheduled} == {"warm", "cold"}


def test_adapters_on_their_way_are_asked_for_again_only_when_something_has_changed() -> None:
    residency = Residency()
    scheduler = create_scheduler(residency)
    scheduler.add(create_req("warm", 4, 20))
    run_step(scheduler)
    for name in ("a", "b"):
        scheduler.add(create_req(name, 4, 2, adapter=name))
    for _ in range(3):
        run_step(scheduler)
    assert sorted(residency.asked) == ["a", "b"]
    scheduler.add(create_req("c", 4, 2, adapter="c"))
    run_step(scheduler)
    assert residency.asked.count("c") == 1, "one that is new is asked for at once"
    residency.resident.add("b")
    assert "b" in {item.req.request.request_id for item in run_step(scheduler).scheduled}


def test_too_many_distinct_adapters_queue() -> None:
    residency = Residency(resident=set("abcdef"))
    scheduler = create_scheduler(residency, max_adapters_in_batch=2)
    for name in "abcdef":
        scheduler.add(create_req(name, 4, 2, name))
    seen = []
    while scheduler.has_work:
        digests = {i.req.adapter_digest for i in run_step(scheduler).scheduled}
        assert len(digests) <= 2
        seen.append(digests)
    assert set().union(*seen) == set("abcdef")
    assert not any(residency.references.values())


def test_a_request_whose_adapter_cannot_be_loaded_is_rejected_with_the_reason() -> None:
    scheduler = create_scheduler(Residency(broken={"bad": "its digest does not match"}))
    scheduler.add(create_req("r", 4, 4, "bad"))
    scheduler.add(create_req("s", 4, 4))
    plan = run_step(scheduler)
    assert {r.request_id: why for r, why in plan.refused.items()} == {
        "r": Refusal("adapter_unavailable", "its digest does not match")
    }
    assert [i.req.request_id for i in plan.scheduled] == ["s"]


def test_the_request_that_started_last_is_preempted_and_recomputed() -> None:
    scheduler = create_scheduler(num_blocks=5)
    first, last = create_req("first", 7, 6), create_req("last", 7, 6)
    scheduler.add(first)
    scheduler.add(last)
    order = []
    while scheduler.has_work:
        order.append([(i.req.request_id, i.start) for i in run_step(scheduler).scheduled])
    assert scheduler.num_preemptions > 0
    assert first.num_preemptions == 0
    assert last.num_preemptions > 0
    assert first.num_output_tokens == last.num_output_tokens == 6
    assert scheduler.blocks.num_free == scheduler.blocks.num_usable


def test_the_end_of_text_token_stops_unless_ignored() -> None:
    scheduler = create_scheduler()
    stops = create_req("stops", 4, 8)
    scheduler.add(stops)
    run_step(scheduler, token=EOS)
    assert stops.finish_reason == "stop"
    goes_on = Req(EngineRequest("i", "t", (1,), SamplingParams(max_tokens=2, ignore_eos=True)), 0.0)
    scheduler.add(goes_on)
    run_step(scheduler, token=EOS)
    assert goes_on.finish_reason is None
    run_step(scheduler, token=EOS)
    assert goes_on.finish_reason == "length"


def test_an_abort_gives_back_blocks_and_adapter_wherever_the_request_is() -> None:
    residency = Residency(resident={"a"})
    scheduler = create_scheduler(residency, max_running=1)
    running, waiting = create_req("r", 4, 8, "a"), create_req("w", 4, 8, "a")
    scheduler.add(running)
    scheduler.add(waiting)
    plan = scheduler.schedule()
    scheduler.finish(running, "abort")
    scheduler.apply(plan, {running: 1})
    assert running.num_output_tokens == 0
    scheduler.finish(waiting, "abort")
    assert not scheduler.has_work
    assert not any(residency.references.values())
    scheduler.integrity()


def test_a_step_budget_below_the_number_of_running_requests_is_refused() -> None:
    with pytest.raises(ValueError, match="max_step_tokens=4"):
        create_scheduler(max_running=8, max_step_tokens=4)


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 12), st.sampled_from([None, *"abcde"])),
        min_size=1,
        max_size=12,
    ),
    st.integers(14, 40),
    st.integers(4, 16),
    st.integers(1, 3),
)
def test_every_request_ends_with_all_its_tokens_and_nothing_is_lost(
    wanted: list[tuple[int, int, str | None]], num_blocks: int, budget: int, max_adapters: int
) -> None:
    residency = Residency(resident=set("abcde"))
    scheduler = create_scheduler(
        residency,
        num_blocks=num_blocks,
        max_running=4,
        max_step_tokens=budget,
        max_adapters_in_batch=max_adapters,
    )
    reqs = [create_req(str(i), *shape) for i, shape in enumerate(wanted)]
    for req in reqs:
        scheduler.add(req)
    for _ in range(5000):
        if not scheduler.has_work:
            break
        plan = run_step(scheduler)
        assert plan.num_tokens <= budget
        assert plan.scheduled, "work is left but nothing can run"
    assert [r.num_output_tokens for r in reqs] == [max_tokens for _, max_tokens, _ in wanted]
    assert scheduler.blocks.num_free == scheduler.blocks.num_usable
    assert not any(residency.references.values())
