"""Blocks of sequences: shared prefixes, forks with copy on write, swapping; no tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from weft.engine.prefix import PrefixRoots, chain, extend_chain
from weft.engine.req import Req
from weft.messages import EngineRequest, SamplingParams

if TYPE_CHECKING:
    from tests.engine.conftest import Simulation

    Simulate = Callable[..., Simulation]

PROMPT = tuple(range(100, 118))  # four whole blocks and two tokens


def request(**changes: object) -> EngineRequest:
    fields = {"tenant_id": "t", "adapter_digest": "a", "cache_salt": "", **changes}
    return EngineRequest("r", prompt_token_ids=PROMPT, sampling=SamplingParams(1), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"tenant_id": "u"},
        {"adapter_digest": "b"},
        {"adapter_digest": None},
        {"cache_salt": "s"},
        # no value can pass for another one's
        {"tenant_id": "a", "adapter_digest": "t"},
        {"tenant_id": 't"], ["salt", "x'},
    ],
)
def test_a_root_differs_in_each_thing_that_a_block_depends_on(change: dict[str, object]) -> None:
    roots = PrefixRoots("base", "float32")
    assert roots.root(request()) != roots.root(request(**change))


def test_a_root_differs_by_base_and_by_number_format() -> None:
    roots = {PrefixRoots(b, f).root(request()) for b in ("x", "y") for f in ("float32", "int8")}
    assert len(roots) == 4


def test_tenants_share_the_base_alone_and_only_where_the_operator_says_so() -> None:
    def differ(shares_base: bool, adapter: str | None) -> bool:
        roots = PrefixRoots("base", "f", shares_base)
        both = (request(tenant_id=t, adapter_digest=adapter) for t in "tu")
        return len({roots.root(r) for r in both}) == 2

    assert differ(shares_base=False, adapter=None)
    assert differ(shares_base=True, adapter="a")
    assert not differ(shares_base=True, adapter=None)


def test_a_chain_names_whole_blocks_by_all_that_comes_before() -> None:
    known: list[bytes] = []
    chain(b"root", known, PROMPT, 11, 4)
    assert len(known) == 2
    assert chain(b"root", known, PROMPT, 18, 4)[:2] == known[:2]
    assert known[1] == extend_chain(known[0], PROMPT[4:8])
    assert known[1] != extend_chain(b"other", PROMPT[4:8])


def run(simulation: Simulation, name: str, **options: object) -> Req:
    req = simulation.add(prompt=PROMPT, name=name, **options)  # type: ignore[arg-type]
    simulation.run()
    return req


def test_a_second_request_computes_only_what_the_first_has_not(simulate: Simulate) -> None:
    simulation = simulate()
    assert run(simulation, "first").num_cached_tokens == 0
    second = run(simulation, "second")
    assert second.usage.num_cached_tokens == 16
    assert second.usage.num_prompt_tokens == 18
    assert simulation.answers["first", 0] == simulation.answers["second", 0]


def test_the_last_token_of_a_cached_prompt_is_computed_for_its_logits(simulate: Simulate) -> None:
    simulation = simulate()
    for name in ("first", "second"):
        req = simulation.add(prompt=PROMPT[:16], name=name)
        simulation.run()
    assert req.num_cached_tokens == 12


@pytest.mark.parametrize(
    "other", [{"tenant": "u"}, {"adapter": "b"}, {"adapter": None}, {"cache_salt": "s"}]
)
def test_nothing_is_shared_across_tenants_adapters_or_salts(
    simulate: Simulate, other: dict[str, object]
) -> None:
    simulation = simulate()
    run(simulation, "first", adapter="a")
    assert run(simulation, "second", **{"adapter": "a", **other}).num_cached_tokens == 0


def test_requests_share_a_prefix_while_both_run(simulate: Simulate) -> None:
    simulation = simulate()
    simulation.add(prompt=PROMPT, name="first", max_tokens=10)
    simulation.step()
    second = simulation.add(prompt=PROMPT, name="second", max_tokens=10)
    simulation.step()
    first = simulation.scheduler.running[0]
    assert first.blocks[:4] == second.blocks[:4]
    assert first.blocks[4] != second.blocks[4]
    simulation.run()


def test_an_answer_is_found_as_part_of_the_next_prompt(simulate: Simulate) -> None:
    simulation = simulate()
    run(simulation, "first", max_tokens=12)
    history = (*PROMPT, *simulation.answers["first", 0])
    turn = simulation.add(prompt=(*history, 7, 8, 9), name="turn")
    simulation.run()
    # the last token of the answer was sampled but never computed
    assert turn.num_cached_tokens == (len(history) - 1) // 4 * 4


def test_the_least_recently_used_prefix_makes_room(simulate: Simulate) -> None:
    simulation = simulate(num_blocks=13)
    for name, start in (("old", 0), ("new", 500)):
        simulation.add(prompt=tuple(range(start, start + 16)), name=name, max_tokens=1)
        simulation.run()
    simulation.add(prompt=tuple(range(900, 924)), max_tokens=1)  # takes the room of one
    simulation.run()
    again = [
        simulation.add(prompt=tuple(range(start, start + 16)), max_tokens=1).choices[0]
        for start in (500, 0)
    ]
    simulation.run()
    assert again[0].num_cached_tokens > again[1].num_cached_tokens


def test_a_failed_request_leaves_nothing_to_be_found(simulate: Simulate) -> None:
    simulation = simulate()
    failed = simulation.add(prompt=PROMPT)
    plan = simulation.scheduler.schedule(0.0)
    simulation.scheduler.apply(plan, {}, failed=[failed])
    simulation.scheduler.finish(failed, "error")
    assert run(simulation, "next").num_cached_tokens == 0


@pytest.mark.parametrize("has_prefix_cache", [True, False])
@pytest.mark.parametrize("size", [15, 16, 17, 18])
def test_choices_share_the_prompt_and_copy_what_they_write_to(
    simulate: Simulate, has_prefix_cache: bool, size: int
) -> None:
    simulation = simulate(has_prefix_cache=has_prefix_cache)
    req = simulation.add(prompt=PROMPT[:size], n=3, max_tokens=9)
    simulation.step()
    plan = simulation.step()
    blocks = [choice.blocks for choice in req.choices]
    num_whole = (size - 1) // 4
    assert len({tuple(table[:num_whole]) for table in blocks}) == 1
    assert len({table[num_whole] for table in blocks}) == 3, "each writes to a block of its own"
    assert [(i.start, i.num_new) for i in plan.scheduled if i.req.index] == [(size - 1, 1)] * 2
    assert len(plan.moves.copies) >= 2
    simulation.run()
    assert {len(simulation.answers["t-1", i]) for i in range(3)} == {9}
    assert req.usage.num_prompt_tokens == size
    assert req.usage.num_completion_tokens == 27


def test_choices_that_wait_give_their_prompt_up_when_blocks_run_out(simulate: Simulate) -> None:
    simulation = simulate(num_blocks=12, max_running=4)
    simulation.add(prompt=PROMPT[:16], n=4, max_tokens=16)
    simulation.add(prompt=8, max_tokens=20)
    simulation.run()
    assert len(simulation.answers) == 5


def test_a_preempted_request_goes_to_host_memory_and_comes_back(simulate: Simulate) -> None:
    simulation = simulate(num_blocks=9, num_host_blocks=20, has_prefix_cache=False)
    first = simulation.add(prompt=12, max_tokens=16)
    last = simulation.add(prompt=12, max_tokens=16)
    moved = []
    while simulation.scheduler.has_work:
        plan = simulation.step()
        moved += [("out", len(plan.moves.out)), ("back", len(plan.moves.back))]
        starts = {item.req: item.start for item in plan.scheduled}
        assert starts.get(last) != 0 or last.num_preemptions == 0, "nothing is computed twice"
    assert first.num_preemptions == 0
    assert last.num_preemptions > 0
    assert sum(n for kind, n in moved if kind == "out") > 0
    assert sum(n for kind, n in moved if kind == "out") == sum(n for k, n in moved if k == "back")
    simulation.run()


def test_without_room_on_the_host_it_is_computed_again(simulate: Simulate) -> None:
    simulation = simulate(num_blocks=9, num_host_blocks=1, has_prefix_cache=False)
    for _ in range(2):
        last = simulation.add(prompt=12, max_tokens=16)
    simulation.run()
    assert last.num_preemptions > 0
    assert {len(answer) for answer in simulation.answers.values()} == {16}


@pytest.mark.parametrize("has_prefix_cache", [True, False])
@pytest.mark.parametrize(("prompt", "n"), [(8, 2), (7, 3)])
def test_forks_that_hold_all_blocks_between_them_do_not_wait_for_ever(
    simulate: Simulate, has_prefix_cache: bool, prompt: int, n: int
) -> None:
    simulation = simulate(num_blocks=5, has_prefix_cache=has_prefix_cache)
    for _ in range(2):
        simulation.add(prompt=prompt, n=n, max_tokens=1)
    simulation.run(max_steps=100)
    assert len(simulation.answers) == 2 * n


def test_a_fork_behind_a_request_that_finds_no_blocks_gives_its_own_up(simulate: Simulate) -> None:
    simulation = simulate(num_blocks=11)
    simulation.add(prompt=16, n=2, max_tokens=1)
    simulation.step()
    simulation.add(prompt=30, max_tokens=2, priority=-5)
    simulation.run(max_steps=100)
    assert len(simulation.answers) == 3
