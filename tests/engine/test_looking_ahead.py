"""The scheduler with a step in flight: what it may decide before that one's tokens are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from weft.engine.plan import StepPlan
from weft.engine.req import Req, ReqState

if TYPE_CHECKING:
    from tests.engine.conftest import Simulation

    Simulate = Callable[..., Simulation]


def parts(plan: StepPlan) -> list[tuple[str, int, int, bool]]:
    return [(i.req.request_id, i.start, i.num_new, i.samples) for i in plan.scheduled]


def apply(simulation: Simulation, plan: StepPlan, token: int = 5) -> None:
    simulation.scheduler.apply(plan, {i.req: token for i in plan.scheduled if i.samples})
    simulation.scheduler.integrity()


def test_the_next_step_is_planned_as_if_every_row_had_its_token(simulate: Simulate) -> None:
    simulation = simulate(max_step_tokens=10)
    scheduler = simulation.scheduler
    simulation.add(name="a", prompt=4, max_tokens=8)
    simulation.add(name="long", prompt=20, max_tokens=8)
    first = scheduler.schedule()
    assert parts(first) == [("a", 0, 4, True), ("long", 0, 6, False)]
    assert scheduler.can_look_ahead
    second = scheduler.schedule()
    assert parts(second) == [("a", 4, 1, True), ("long", 6, 9, False)]
    scheduler.integrity()
    apply(simulation, first)
    third = scheduler.schedule()
    assert parts(third) == [("a", 5, 1, True), ("long", 15, 5, True)]
    apply(simulation, second)
    apply(simulation, third)
    a, long = scheduler.running
    assert (a.num_output_tokens, long.num_output_tokens) == (3, 1)
    assert (a.num_computed, long.num_computed) == (6, 20)


def test_an_end_by_length_is_known_and_costs_no_row(simulate: Simulate) -> None:
    simulation = simulate()
    scheduler = simulation.scheduler
    simulation.add(name="short", max_tokens=1)
    simulation.add(name="long", max_tokens=2)
    first, second, third = (scheduler.schedule() for _ in range(3))
    assert [r[0] for r in parts(first)] == ["short", "long"]
    assert [r[0] for r in parts(second)] == ["long"]
    assert not third.scheduled
    assert not third.moves
    assert scheduler.num_preemptions == 0
    apply(simulation, first)
    apply(simulation, second)
    assert [req.finish_reason for req in scheduler.running] == ["length", "length"]


def test_a_row_too_many_is_dropped_and_its_blocks_and_adapter_are_held_until_then(
    simulate: Simulate,
) -> None:
    simulation = simulate(max_adapters=1)
    scheduler, references = simulation.scheduler, simulation.residency.references
    req = simulation.add("t", prompt=4, max_tokens=8, adapter="x")
    first, second = scheduler.schedule(), scheduler.schedule()
    apply(simulation, first)
    charged = scheduler.waiting.counters["t"]
    scheduler.finish(req, "stop")
    scheduler.integrity()
    assert not scheduler.running
    assert len(req.blocks) == 2
    assert references["x"] == 1
    other = simulation.add("t", adapter="y")
    third = scheduler.schedule()
    assert not third.scheduled, "the adapter's place is not free yet"
    apply(simulation, second)
    assert req.token_ids[4:] == [5]
    assert req.finish_reason == "stop"
    assert not req.blocks
    assert references["x"] == 0
    assert scheduler.waiting.counters["t"] == charged - 2, "nobody pays for the row too many"
    assert [i.req for i in scheduler.schedule().scheduled] == [other]


def test_who_ends_between_planning_and_launch_keeps_its_blocks_for_its_row(
    simulate: Simulate,
) -> None:
    simulation = simulate()
    req = simulation.add(prompt=4, max_tokens=8)
    plan = simulation.scheduler.schedule()
    simulation.scheduler.finish(req, "abort")
    assert req.blocks
    apply(simulation, plan)
    assert not req.blocks
    simulation.run()


@pytest.mark.parametrize(
    ("options", "num_steps"),
    [
        ({}, 0),
        ({"sampling": {"logprobs": 2}}, 1),
        ({"sampling": {"repetition_penalty": 1.5}}, 1),
        ({"sampling": {"logit_bias": ((3, 1.0),)}}, 1),
        ({"n": 2}, 1),
    ],
    ids=["greedy", "logprobs", "penalty", "bias", "forks"],
)
def test_a_token_that_the_host_has_to_see_is_waited_for(
    simulate: Simulate, options: dict[str, Any], num_steps: int
) -> None:
    simulation = simulate(max_step_tokens=8, max_running=8)
    scheduler = simulation.scheduler
    simulation.add(prompt=12, max_tokens=8, **options)
    first = scheduler.schedule()
    assert scheduler.can_look_ahead, "no token is chosen in the middle of a prompt"
    second = scheduler.schedule()
    apply(simulation, first)
    assert scheduler.can_look_ahead == (num_steps == 0)
    apply(simulation, second)
    assert scheduler.can_look_ahead


def test_least_length_is_waited_for_only_until_it_is_reached(simulate: Simulate) -> None:
    simulation = simulate()
    scheduler = simulation.scheduler
    simulation.add(max_tokens=8, sampling={"min_tokens": 2})
    can = []
    for _ in range(5):
        plan = scheduler.schedule()
        can.append(scheduler.can_look_ahead)
        apply(simulation, plan)
    assert can == [False, False, True, True, True]


@pytest.mark.parametrize("num_host_blocks", [0, 20])
def test_nobody_in_flight_is_preempted(simulate: Simulate, num_host_blocks: int) -> None:
    simulation = simulate(num_blocks=5, num_host_blocks=num_host_blocks)
    scheduler = simulation.scheduler
    for name in "ab":
        simulation.add(name=name, prompt=7, max_tokens=6)
    first = scheduler.schedule()  # 7 of 8 places each, in 2 blocks
    assert scheduler.can_look_ahead
    second = scheduler.schedule()
    assert [r[0] for r in parts(second)] == ["a", "b"]
    apply(simulation, first)
    assert not scheduler.can_look_ahead, "one of the two has to give way"
    apply(simulation, second)
    third = scheduler.schedule()
    assert [r[0] for r in parts(third)] == ["a"]
    assert scheduler.num_preemptions == 1


def test_who_has_to_yield_its_place_is_taken_out_of_flight_first(simulate: Simulate) -> None:
    simulation = simulate(num_blocks=600, max_running=4, max_step_tokens=4, depth=1)
    for _ in range(8):
        simulation.add("flood", prompt=1, max_tokens=60)
    for _ in range(12):
        simulation.step()
    simulation.add("light", name="light", prompt=1, max_tokens=4)
    num_ahead = simulation.num_ahead
    for _ in range(3):
        simulation.step()
    assert simulation.num_ahead == num_ahead + 2, "one step is planned after the one before it"
    assert "light" in simulation.first_token_at
    assert simulation.scheduler.num_preemptions == 1
    simulation.run()


def test_a_block_is_published_when_the_step_that_fills_it_is_over(simulate: Simulate) -> None:
    simulation = simulate()
    scheduler = simulation.scheduler
    prompt = tuple(range(9))
    simulation.add(name="one", prompt=prompt, max_tokens=8)
    first = scheduler.schedule()
    simulation.add(name="early", prompt=prompt)
    second = scheduler.schedule()
    assert parts(second) == [("one", 9, 1, True), ("early", 0, 9, True)]
    apply(simulation, first)
    simulation.add(name="late", prompt=prompt)
    assert parts(scheduler.schedule())[2:] == [("late", 8, 1, True)]


def test_a_step_that_is_cut_short_for_want_of_blocks_disturbs_nobody(simulate: Simulate) -> None:
    # all that waits finds no room, and what is in flight is about to give some back
    simulation = simulate(num_blocks=5, has_prefix_cache=False)
    scheduler = simulation.scheduler
    forking = simulation.add(name="forking", prompt=8, max_tokens=1, n=2)
    first = scheduler.schedule()
    apply(simulation, first)
    scheduler.finish(forking, "length")
    last = scheduler.schedule()
    assert [i.req.index for i in last.scheduled] == [1]
    simulation.add(name="large", prompt=16, max_tokens=1)
    assert not scheduler.schedule().scheduled
    assert scheduler.num_preemptions == 0
    assert all(c.state is not ReqState.WAITING for c in forking.choices)
    apply(simulation, last)


def test_most_steps_are_planned_ahead(simulate: Simulate) -> None:
    simulation = simulate(depth=1)
    reqs: list[Req] = [simulation.add(prompt=5 + i, max_tokens=20) for i in range(6)]
    simulation.run()
    assert simulation.num_ahead >= 19
    assert all(len(simulation.answers[req.request_id, 0]) == 20 for req in reqs)
