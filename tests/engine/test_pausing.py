"""Requests pause where their adapter has to make room for another, and go on where they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.engine.conftest import Simulation

    Simulate = Callable[..., Simulation]


def test_more_adapters_than_have_room_share_the_time(simulate: Simulate) -> None:
    simulation = simulate(room=2, turn_steps=3)
    for adapter in "abcd":
        simulation.add(name=adapter, adapter=adapter, max_tokens=60)
    for _ in range(20):
        simulation.step()
    assert set(simulation.first_token_at) == set("abcd")
    assert max(simulation.first_token_at.values()) <= 10
    assert simulation.scheduler.num_pauses > 2
    simulation.run()


def test_who_pauses_computes_nothing_again(simulate: Simulate) -> None:
    simulation = simulate(room=1, turn_steps=2, has_prefix_cache=False)
    num_computed = 0
    for adapter in "ab":
        simulation.add(adapter=adapter, prompt=10, max_tokens=20)
    while simulation.scheduler.has_work:
        num_computed += sum(item.num_new for item in simulation.step().scheduled)
    assert simulation.scheduler.num_pauses > 4
    assert simulation.scheduler.num_preemptions == 0
    assert num_computed == 2 * (10 + 20 - 1)


def test_who_pauses_gives_its_blocks_to_who_runs_and_lacks_them(simulate: Simulate) -> None:
    simulation = simulate(room=1, turn_steps=4, num_blocks=12, has_prefix_cache=False)
    for adapter in "ab":
        simulation.add(name=adapter, adapter=adapter, prompt=16, max_tokens=20)
    simulation.run()
    assert simulation.scheduler.num_pauses > 0
    assert simulation.scheduler.num_preemptions > 0


def test_a_paused_prompt_goes_on_where_it_was(simulate: Simulate) -> None:
    simulation = simulate(room=1, turn_steps=1, max_step_tokens=8, has_prefix_cache=False)
    chunks = []
    for adapter in "ab":
        simulation.add(name=adapter, adapter=adapter, prompt=40, max_tokens=2)
    while simulation.scheduler.has_work:
        plan = simulation.step()
        chunks += [(item.req.request_id, item.start, item.stop) for item in plan.scheduled]
    for adapter in "ab":
        own = [(start, stop) for name, start, stop in chunks if name == adapter]
        assert [start for start, _ in own][1:] == [stop for _, stop in own][:-1]


def test_a_paused_request_is_not_refused_for_waiting_too_long(simulate: Simulate) -> None:
    simulation = simulate(room=1, turn_steps=8)
    simulation.add(name="a", adapter="a", max_tokens=30, queue_timeout_s=10.0)
    simulation.add(name="b", adapter="b", max_tokens=30)
    simulation.run()
    assert not simulation.refused
    assert len(simulation.answers) == 2


def test_one_in_flight_is_paused_when_its_step_is_over(simulate: Simulate) -> None:
    simulation = simulate(room=1, turn_steps=3, depth=1)
    for adapter in "ab":
        simulation.add(adapter=adapter, max_tokens=30)
    simulation.run()
    assert simulation.num_ahead > 0
    assert simulation.scheduler.num_pauses > 2


@pytest.mark.parametrize("prompts", [(38, 38), (30, 19, 14), (21, 30, 35)])
def test_prompts_longer_than_a_turn_get_through_where_blocks_suffice_for_one(
    simulate: Callable[..., Simulation], prompts: tuple[int, ...]
) -> None:
    simulation = simulate(
        num_blocks=12,
        max_running=1,
        max_step_tokens=6,
        load_steps=2,
        room=1,
        has_prefix_cache=False,
    )
    for number, prompt in enumerate(prompts):
        simulation.add(f"tenant {number}", prompt=prompt, adapter=f"adapter {number}", max_tokens=6)
    simulation.run(max_steps=1000)
    assert len(simulation.answers) == len(prompts)
