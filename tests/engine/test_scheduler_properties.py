"""Whatever is asked, in whatever order, with little of everything: nothing is lost or stuck, and
what a request gets does not depend on how it was scheduled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weft.engine.expiries import Expiries
from weft.engine.req import Req, ReqState
from weft.messages import EngineRequest, SamplingParams, TenantShare

if TYPE_CHECKING:
    from tests.engine.conftest import Simulation

    Simulate = Callable[..., Simulation]

# one token in six ends an answer
STOPS = {"stop_token_ids": tuple(range(0, 997, 6))}
requests = st.fixed_dictionaries(
    {
        "tenant": st.sampled_from("abc"),
        "prompt": st.one_of(
            st.integers(1, 30),
            # beginnings in common
            st.integers(1, 30).map(lambda size: tuple(range(size))),
        ),
        "max_tokens": st.integers(1, 14),
        "adapter": st.sampled_from([None, "x", "y", "z"]),
        "n": st.sampled_from([1, 1, 1, 3]),
        "sampling": st.sampled_from([{}, {}, STOPS, {"logprobs": 0}, STOPS | {"min_tokens": 1}]),
        "priority": st.integers(-2, 2),
        "share": st.builds(
            TenantShare, st.sampled_from([0.5, 1.0, 4.0]), st.sampled_from([None, 1, 3])
        ),
    }
)
machines = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(12, 40),
        "max_running": st.integers(1, 6),
        "max_step_tokens": st.integers(6, 24),
        "max_adapters": st.integers(1, 3),
        "num_host_blocks": st.sampled_from([0, 3, 30]),
        "has_prefix_cache": st.booleans(),
        "load_steps": st.integers(0, 3),
        "room": st.sampled_from([1, 2, 3, 3]),
        "depth": st.integers(0, 1),
    }
)
aborts = st.sets(st.integers(0, 30))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(machine=machines, batches=st.lists(st.lists(requests, max_size=5), max_size=8))
def test_everything_ends_with_the_answer_it_would_get_alone(
    simulate: Simulate, machine: dict[str, Any], batches: list[list[dict[str, Any]]]
) -> None:
    simulation = simulate(**machine)
    asked: dict[str, dict[str, Any]] = {}
    for batch in batches:
        for options in batch:
            req = simulation.add(**options)
            asked[req.request_id] = {**options, "prompt": req.request.prompt_token_ids}
        simulation.step()
    simulation.run()
    for request_id, options in asked.items():
        alone = simulate()
        alone.add(**options, name=request_id)
        alone.run()
        for index in range(options["n"]):
            key = (request_id, index)
            assert simulation.answers[key] == alone.answers[key]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(machine=machines, work=st.lists(requests, min_size=1, max_size=20), aborted=aborts)
def test_what_is_aborted_at_any_time_gives_everything_back(
    simulate: Simulate, machine: dict[str, Any], work: list[dict[str, Any]], aborted: set[int]
) -> None:
    simulation = simulate(**machine)
    added = []
    for number, options in enumerate(work):
        added.append(simulation.add(**options))
        simulation.step()
        if number in aborted:
            victim = added[len(added) // 2]
            for choice in victim.choices:
                if choice.state.value != "finished":
                    simulation.scheduler.finish(choice, "abort")
            simulation.scheduler.integrity()
    simulation.run()


def test_a_request_that_waits_too_long_is_refused_and_others_are_not(simulate: Simulate) -> None:
    simulation = simulate(max_running=1)
    simulation.add(name="runs", max_tokens=10, queue_timeout_s=2.0)
    simulation.add(name="waits", queue_timeout_s=5.0)
    simulation.add(name="patient", queue_timeout_s=50.0)
    simulation.run()
    assert simulation.refused == {"waits": "queue_timeout"}
    assert set(simulation.first_token_at) == {"runs", "patient"}


def test_a_request_whose_adapter_does_not_come_is_told_to_come_back(
    simulate: Callable[..., Simulation],
) -> None:
    simulation = simulate(load_steps=20)
    simulation.add(name="gives up", adapter="far", adapter_timeout_s=5.0)
    simulation.add(name="waits", adapter="far", adapter_timeout_s=50.0)
    simulation.add(name="base", adapter_timeout_s=1.0, max_tokens=20)
    simulation.run()
    assert simulation.refused == {"gives up": "adapter_loading"}
    assert set(simulation.answers) == {("waits", 0), ("base", 0)}


def test_a_request_that_waits_for_a_place_does_not_wait_for_its_adapter(
    simulate: Callable[..., Simulation],
) -> None:
    simulation = simulate(max_running=1)
    simulation.residency.asked_at["near"] = 0
    simulation.add(name="runs", max_tokens=20)
    simulation.add(name="waits", adapter="near", adapter_timeout_s=3.0)
    simulation.run()
    assert simulation.refused == {}


def test_a_request_that_takes_too_long_ends_where_it_is(simulate: Simulate) -> None:
    simulation = simulate(max_running=2)
    slow = simulation.add(name="slow", max_tokens=40, timeout_s=6.0, n=2)
    simulation.run()
    assert simulation.refused == {"slow": "deadline_exceeded"}
    assert slow.usage.num_completion_tokens == 6 + 5


def test_an_adapter_that_is_on_its_way_holds_up_nobody_else(simulate: Simulate) -> None:
    simulation = simulate(load_steps=5)
    simulation.add("t", name="cold", adapter="x")
    simulation.add("t", name="warm", max_tokens=2)
    simulation.add("u", name="other", max_tokens=2)
    simulation.run()
    assert simulation.first_token_at["warm"] == simulation.first_token_at["other"] == 1
    assert simulation.first_token_at["cold"] == 6


def test_requests_that_ended_in_time_are_not_kept_until_their_deadline() -> None:
    expiries, reqs = Expiries(), []
    for i in range(1000):
        request = EngineRequest(str(i), "t", (1,), SamplingParams(1), timeout_s=1e6)
        reqs.append(Req(request, 0.0))
        expiries.add(reqs[-1])
        if i >= 5:
            reqs[i - 5].state = ReqState.FINISHED
    assert expiries.num_noted < 100
    assert set(expiries.pop(2e6)) == set(reqs[-5:])


def test_who_came_later_does_not_take_the_oldest_prompts_blocks_for_ever(
    simulate: Simulate,
) -> None:
    # a prompt of many chunks beside one of a tenant that is always served first
    simulation = simulate(num_blocks=13, max_running=3, max_step_tokens=10, has_prefix_cache=False)
    for tenant in ("a", "c", "b", "a", "c"):
        simulation.add(tenant, prompt=19 if tenant == "a" else 29, max_tokens=14)
        simulation.step()
    simulation.run(max_steps=1000)
