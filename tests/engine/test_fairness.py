"""Fairness between tenants, and between the adapters of one: counters alone, then the scheduler."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.engine.fairness import VirtualCounters
from weft.messages import TenantShare

if TYPE_CHECKING:
    from tests.engine.conftest import Simulation

    Simulate = Callable[..., Simulation]


def test_one_that_comes_back_is_lifted_to_the_least_of_those_that_wait() -> None:
    counters: VirtualCounters[str] = VirtualCounters()
    for key in "ab":
        counters.enter(key)
    counters.charge("a", 100.0)
    counters.charge("b", 70.0)
    counters.enter("late")
    assert counters["late"] == 70.0


def test_a_pause_takes_nothing_away_either() -> None:
    counters: VirtualCounters[str] = VirtualCounters()
    for key in "ab":
        counters.enter(key)
    counters.charge("a", 100.0)
    counters.leave("a")
    counters.charge("b", 10.0)
    counters.enter("a")
    assert counters["a"] == 100.0


def test_after_all_have_left_the_next_one_starts_where_the_last_one_was() -> None:
    counters: VirtualCounters[str] = VirtualCounters()
    counters.enter("a")
    counters.charge("a", 50.0)
    counters.leave("a")
    counters.enter("b")
    assert counters["b"] == 50.0


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3)), max_size=200))
def test_no_more_keys_are_kept_than_wait_or_are_ahead(moves: list[tuple[str, int]]) -> None:
    counters: VirtualCounters[str] = VirtualCounters()
    waiting: set[str] = set()
    for key, move in moves:
        before = {k: counters[k] for k in "abcdef"}
        if move == 0:
            counters.enter(key)
            waiting.add(key)
        elif move == 1:
            counters.leave(key)
            waiting.discard(key)
        else:
            counters.charge(key, float(move))
        assert all(counters[k] >= before[k] for k in "abcdef"), "a counter went back"
        least = min((counters[k] for k in waiting), default=float("inf"))
        ahead = {k for k in "abcdef" if counters[k] > least}
        assert counters.num_known <= 6
        assert waiting | ahead <= set("abcdef")


def keep_backlogged(
    simulation: Simulation, tenants: dict[str, Callable[[], dict[str, Any]]], depth: int
) -> None:
    """Add requests until each tenant has `depth` waiting."""
    waiting = Counter(req.tenant_id for req in simulation.scheduler.waiting)
    for tenant, create in tenants.items():
        for _ in range(depth - waiting[tenant]):
            simulation.add(tenant, **create())


def bound(num_running: int, prompt: int, answer: int, step_tokens: int, weight: float) -> float:
    """The formula of `weft.engine.fairness`."""
    return 2 * (step_tokens + num_running * (prompt + 2 * answer)) / weight


@pytest.mark.parametrize("num_adapters", [1, 50])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0)])
@pytest.mark.parametrize("num_blocks", [30, 400])
@pytest.mark.parametrize("ahead", [0, 1])
def test_the_service_of_two_backlogged_tenants_stays_within_the_bound(
    simulate: Simulate,
    num_adapters: int,
    weights: tuple[float, float],
    num_blocks: int,
    ahead: int,
) -> None:
    rng = random.Random(num_adapters)
    simulation = simulate(
        num_blocks=num_blocks, max_running=6, max_adapters=6, load_steps=1, depth=ahead
    )

    def create(owner: str, count: int, weight: float) -> Callable[[], dict[str, Any]]:
        return lambda: {
            "prompt": rng.randint(1, 24),
            "max_tokens": rng.randint(1, 20),
            "adapter": f"{owner}{rng.randrange(count)}",
            "share": TenantShare(weight),
        }

    tenants = {
        "one": create("one", 1, weights[0]),
        "many": create("many", num_adapters, weights[1]),
    }
    limit = bound(6, 24, 20, 32, min(weights))
    leads = []
    for _ in range(700):
        keep_backlogged(simulation, tenants, 4)
        simulation.step()
        one, many = (simulation.service[t] / w for t, w in zip(tenants, weights, strict=True))
        leads.append(one - many)
    assert max(leads) - min(leads) <= limit
    # the bound is not all there is: over the whole run they are close
    total = simulation.service["one"] / weights[0] + simulation.service["many"] / weights[1]
    assert abs(leads[-1]) < 0.05 * total


def jain(values: list[float]) -> float:
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values))


def test_ten_backlogged_tenants_get_equal_service_though_one_floods(simulate: Simulate) -> None:
    rng = random.Random(1)
    simulation = simulate(num_blocks=600, max_running=16, max_step_tokens=64, max_adapters=16)

    def create(owner: int) -> Callable[[], dict[str, Any]]:
        return lambda: {
            "prompt": rng.randint(4, 24),
            "max_tokens": rng.randint(4, 20),
            "adapter": f"{owner}-{rng.randrange(50 if owner == 0 else 1)}",
        }

    light = {str(i): create(i) for i in range(1, 10)}
    for _ in range(1000):
        keep_backlogged(simulation, light, 2)
        keep_backlogged(simulation, {"0": create(0)}, 40)
        simulation.step()
    assert jain([simulation.service[str(i)] for i in range(10)]) >= 0.98


def test_a_light_tenant_gets_its_first_token_within_two_steps_of_a_flood(
    simulate: Simulate,
) -> None:
    simulation = simulate(num_blocks=600, max_running=8, max_step_tokens=64)
    flood: dict[str, Callable[[], dict[str, Any]]] = {
        "flood": lambda: {"prompt": 16, "max_tokens": 60}
    }
    waits = []
    for step in range(400):
        keep_backlogged(simulation, flood, 20)
        if step % 20 == 10:
            req = simulation.add("light", prompt=16, max_tokens=10)
            asked = simulation.now
            simulation.step()
            keep_backlogged(simulation, flood, 20)
            simulation.step()
            waits.append(simulation.first_token_at[req.request_id] - asked)
        simulation.step()
    assert max(waits) <= 2
    assert simulation.scheduler.num_preemptions > 0, "the flood held every place"


def test_the_adapters_of_one_tenant_share_its_service(simulate: Simulate) -> None:
    simulation = simulate(num_blocks=400, max_running=4)
    served: Counter[str] = Counter()
    for _ in range(300):
        waiting = Counter(req.adapter_digest for req in simulation.scheduler.waiting)
        for adapter, depth in {"busy": 20, "quiet": 4}.items():
            for _ in range(depth - waiting[adapter]):
                simulation.add("t", adapter=adapter)
        for item in simulation.step().scheduled:
            served[item.req.adapter_digest or ""] += item.num_new
    assert 0.9 < served["quiet"] / served["busy"] < 1.1


def test_loading_an_adapter_is_charged_to_the_tenant_that_wanted_it(simulate: Simulate) -> None:
    simulation = simulate()
    simulation.residency.load_cost = 500.0
    simulation.add("loads", adapter="cold")
    simulation.step()
    counters = simulation.scheduler.waiting.counters
    assert counters["loads"] == 500.0 + 4 + 2
    simulation.run()


def test_a_tenant_runs_no_more_at_once_than_it_may(simulate: Simulate) -> None:
    simulation = simulate()
    for _ in range(6):
        simulation.add("capped", share=TenantShare(max_running=2))
        simulation.add("free", max_tokens=8)
    most = 0
    while simulation.scheduler.has_work:
        simulation.step()
        most = max(most, sum(r.tenant_id == "capped" for r in simulation.scheduler.running))
    assert most == 2


def test_priority_orders_a_tenants_requests_but_never_two_tenants(simulate: Simulate) -> None:
    simulation = simulate(max_running=1)
    simulation.add("t", name="first")
    simulation.step()
    simulation.add("other", name="other")
    simulation.add("t", name="normal")
    simulation.add("t", name="urgent", priority=-1)
    simulation.run()
    order = sorted(simulation.first_token_at, key=simulation.first_token_at.__getitem__)
    assert order.index("other") == 1
    assert order.index("urgent") < order.index("normal")


def test_who_is_put_ahead_does_not_give_way_because_it_started_last(simulate: Simulate) -> None:
    simulation = simulate(num_blocks=13, has_prefix_cache=False)
    simulation.add("t", prompt=8, max_tokens=16)
    normal = simulation.add("t", prompt=8, max_tokens=16)
    simulation.step()
    urgent = simulation.add("t", prompt=8, max_tokens=16, priority=-1)
    simulation.run()
    assert normal.num_preemptions > 0
    assert urgent.num_preemptions == 0


def test_a_low_priority_waits_no_longer_than_its_priority_is_worth(simulate: Simulate) -> None:
    simulation = simulate(max_running=1)
    simulation.add("t", name="patient", priority=3, max_tokens=1)
    while "patient" not in simulation.first_token_at:
        simulation.add("t", max_tokens=2)
        simulation.step()
        assert simulation.now < 100
    assert simulation.now > 25


def test_a_light_tenant_gets_a_place_though_decoding_takes_the_whole_budget(
    simulate: Simulate,
) -> None:
    simulation = simulate(num_blocks=600, max_running=8, max_step_tokens=8)
    for _ in range(20):
        simulation.add("flood", prompt=1, max_tokens=60)
    for _ in range(12):
        simulation.step()
    light = simulation.add("light", prompt=1, max_tokens=4)
    simulation.step()
    assert light.request_id in simulation.first_token_at


def test_a_request_that_waits_again_brings_no_old_share_back(simulate: Simulate) -> None:
    simulation = simulate(num_blocks=9, has_prefix_cache=False)
    for weight in (1.0, 8.0):
        simulation.add("t", prompt=12, max_tokens=16, share=TenantShare(weight))
    while simulation.scheduler.num_preemptions == 0:
        simulation.step()
    assert simulation.scheduler.waiting.tenants["t"].share.weight == 8.0
    simulation.run()
