"""With asynchronous scheduling a request gets what it gets without, and nothing is held too long
or given back too early. On a CPU, where a step is over when its launch returns."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest
import torch

from weft.engine.build import BuiltEngine
from weft.engine.config import resolve_async_scheduling
from weft.engine.offline import Completion, load_adapters, run_requests
from weft.engine.plan import StepPlan
from weft.engine.runner import PendingStep
from weft.engine.sampler import NON_FINITE, Sampled
from weft.messages import EngineRequest, Grammar, SamplingParams
from weft_adapters.pool import PooledAdapter

if TYPE_CHECKING:
    from tests.bench import Bench

PROMPT = tuple(range(40, 60))
Built = tuple[BuiltEngine, dict[str, str]]
Build = Callable[..., Built]


@pytest.fixture
def build(dense: Bench) -> Iterator[Build]:
    """Builds engines with asynchronous scheduling; each is checked to have given all back."""
    built = []

    def build(is_async: bool = True, **options: Any) -> Built:
        options = {"max_model_len": 128, **options}
        built.append(dense.build(async_scheduling=is_async, **options))
        return built[-1]

    yield build
    for engine, _ in built:
        assert_all_is_free(engine)
        engine.tiers.close()


def assert_all_is_free(built: BuiltEngine) -> None:
    engine = built.engine
    assert not engine.has_work
    assert not engine.adapters.held
    assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_usable
    memory = engine.scheduler.memory
    assert memory.num_free_host == memory.num_host_blocks
    engine.integrity()


def create_request(
    name: str = "r", adapter: str | None = None, prompt: tuple[int, ...] = PROMPT, **sampling: Any
) -> EngineRequest:
    params = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, **sampling}
    return EngineRequest(name, "tenant", prompt, SamplingParams(**params), adapter)


def run_out(built: BuiltEngine) -> None:
    while built.engine.has_work:
        built.engine.step()


# ---- the same answers ----

SAMPLED: dict[str, Any] = {"temperature": 1.1, "top_p": 0.95, "top_k": 80}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"max_tokens": 30},
    "sampled": {"max_tokens": 25, "seed": 3, **SAMPLED},
    "sampled, no seed": {"max_tokens": 28, **SAMPLED},
    "short": {"max_tokens": 1},
    "two": {"max_tokens": 2, "seed": 5, **SAMPLED},
    "stop token": {"max_tokens": 40, "stop_token_ids": tuple(range(100, 120)), **SAMPLED},
    "stop string": {"max_tokens": 40, "stop": ("e", "th"), "seed": 9, **SAMPLED},
    "least length": {"max_tokens": 20, "min_tokens": 6, "stop_token_ids": tuple(range(200))},
}
SEEN_BY_THE_HOST: dict[str, dict[str, Any]] = {
    "choices": {"max_tokens": 12, "n": 3, "seed": 2, **SAMPLED},
    "logprobs": {"max_tokens": 9, "logprobs": 2},
    "penalty": {"max_tokens": 14, "presence_penalty": 1.5},
    "bias": {"max_tokens": 6, "logit_bias": ((65, 5.0),)},
    "grammar": {"max_tokens": 30, "grammar": Grammar("regex", "[a-z]{8}[0-9]{4}")},
}
WAYS: dict[str, dict[str, Any]] = {
    "all at once": {},
    "prompts in chunks": {"max_step_tokens": 14, "max_running": 6},
    "two adapters at a time": {"max_adapters_in_batch": 2},
    "no prefix cache": {"prefix_cache": False},
    "computed again": {"num_blocks": 14, "prefix_cache": False},
    "matched again": {"num_blocks": 14},
    "swapped": {"num_blocks": 14, "num_host_blocks": 60},
    "by torch's operators": {"kernels": "torch"},
}


def create_requests(
    kinds: Mapping[str, dict[str, Any]], digests: Mapping[str, str]
) -> list[EngineRequest]:
    """Twice each kind, over prompts that begin alike, for the base and for adapters in turn."""
    rng, names = random.Random(1), [None, *digests]
    requests = []
    for i, (kind, sampling) in enumerate([*kinds.items()] * 2):
        prompt = PROMPT[:17] + tuple(rng.randrange(256) for _ in range(rng.randint(1, 30)))
        name = names[i % len(names)]
        digest = None if name is None else digests[name]
        requests.append(create_request(f"{i} {kind}", digest, prompt, **sampling))
    return requests


def outcome(completion: Completion) -> list[tuple[Any, ...]]:
    """Of each choice; `usage` is of all of them."""
    usage = (completion.usage.num_prompt_tokens, completion.usage.num_completion_tokens)
    return [
        (c.text, c.token_ids, c.finish_reason, c.error, len(c.logprobs), usage)
        for c in completion.choices
    ]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "is_mixed",
    # the mix has these requests, too
    [
        pytest.param(False, id="device alone", marks=pytest.mark.verify),
        pytest.param(True, id="and host"),
    ],
)
def test_answers_are_those_of_the_engine_that_waits_for_each_step(
    build: Build, dense: Bench, way: str, is_mixed: bool
) -> None:
    options = dict(WAYS[way])
    if is_tight := "num_blocks" in options:
        options["kv_bytes"] = options.pop("num_blocks") * dense.block_bytes()
        options["swap_bytes"] = options.pop("num_host_blocks", 0) * dense.block_bytes()
    found = []
    for is_async in (False, True):
        built, digests = build(is_async, **options)
        load_adapters(built, digests.values())
        requests = create_requests(KINDS | (SEEN_BY_THE_HOST if is_mixed else {}), digests)
        done = run_requests(built, requests)
        found.append({name: outcome(completion) for name, completion in done.items()})
        counters = built.engine.counters
        usages = [completion.usage for completion in done.values()]
        assert counters.num_prompt_tokens == sum(u.num_prompt_tokens for u in usages)
        assert counters.num_generation_tokens == sum(u.num_completion_tokens for u in usages)
        assert (built.engine.scheduler.num_preemptions > 0) == is_tight
    want, got = found
    assert {rows[0][2] for rows in want.values()} == {"length", "stop"}
    for name, rows in want.items():
        assert got[name] == rows, name


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_whenever_requests_come_and_are_aborted_all_is_counted_and_given_back(
    build: Build, dense: Bench, seed: int
) -> None:
    rng = random.Random(seed)
    tight = {"kv_bytes": 14 * dense.block_bytes(), "swap_bytes": 8 * dense.block_bytes()}
    built, digests = build(max_running=5, max_adapters_in_batch=2, **(tight if seed % 2 else {}))
    kinds = KINDS if seed < 2 else KINDS | SEEN_BY_THE_HOST
    left, engine = create_requests(kinds, digests), built.engine
    want = run_requests(build(is_async=False)[0], left)
    rng.shuffle(left)
    running: set[str] = set()
    tokens: dict[str, list[list[int]]] = {r.request_id: [[] for _ in range(3)] for r in left}
    usage: dict[str, int] = {}
    aborted: set[str] = set()
    while left or engine.has_work:
        if left and rng.random() < 0.4:
            request = left.pop()
            running.add(request.request_id)
            engine.add(request)
        outputs = engine.step()
        if running and rng.random() < 0.1:
            aborted.add(name := rng.choice(sorted(running)))
            outputs += engine.abort(name)
        for output in outputs:
            tokens[output.request_id][output.index] += output.token_ids
            usage[output.request_id] = output.usage.num_completion_tokens
            if output.is_last:
                running.remove(output.request_id)
    assert len(aborted) > 1
    for name, completion in want.items():
        for choice, got in zip(completion.choices, tokens[name], strict=False):
            whole = choice.token_ids
            assert got == (whole[: len(got)] if name in aborted else whole), name
        assert usage[name] == sum(map(len, tokens[name]))
    assert engine.counters.num_generation_tokens == sum(usage.values())


# ---- what happens when ----


def record_order(built: BuiltEngine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    engine, events, count = built.engine, [], iter(range(1000))
    schedule, launch = engine.scheduler.schedule, engine._runner.launch

    def note_schedule(now: float) -> StepPlan:
        events.append("schedule")
        return schedule(now)

    def note_launch(plan: StepPlan, adapters: Mapping[str, PooledAdapter]) -> PendingStep:
        pending, number = launch(plan, adapters), next(count)
        events.append(f"launch {number}")

        def wait() -> Any:
            events.append(f"collect {number}")
            return pending.wait()

        return PendingStep(pending.items, wait)

    monkeypatch.setattr(engine.scheduler, "schedule", note_schedule)
    monkeypatch.setattr(engine._runner, "launch", note_launch)
    return events


def test_a_step_is_scheduled_and_launched_before_the_one_before_it_is_collected(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, _ = build()
    events = record_order(built, monkeypatch)
    run_requests(built, [create_request(max_tokens=3)])
    assert events == [
        "schedule", "launch 0",
        "schedule", "launch 1", "collect 0",
        "schedule", "launch 2", "collect 1",
        "schedule", "collect 2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("is_async", "sampling"), [(True, {"logprobs": 1}), (False, {})], ids=["logprobs", "off"]
)
def test_a_step_is_collected_first_where_the_next_one_depends_on_it(
    build: Build, monkeypatch: pytest.MonkeyPatch, is_async: bool, sampling: dict[str, Any]
) -> None:
    built, _ = build(is_async)
    events = record_order(built, monkeypatch)
    run_requests(built, [create_request(max_tokens=3, **sampling)])
    each = (["schedule", f"launch {i}", f"collect {i}"] for i in range(3))
    assert [e for step in each for e in step] == [*events[:9]]
    assert events[9:] in ([], ["schedule"])


def test_it_is_on_where_the_device_is_cuda_unless_it_is_chosen() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 1)
    assert [resolve_async_scheduling(None, device) for device in (cpu, cuda)] == [False, True]
    assert [resolve_async_scheduling(choice, cpu) for choice in (True, False)] == [True, False]
    assert not resolve_async_scheduling(False, cuda)


# ---- ends that nobody foresaw ----


def test_a_stop_has_one_row_too_many_which_nobody_sees(build: Build) -> None:
    built, digests = build()
    engine = built.engine
    whole = run_requests(built, [create_request(adapter=digests["small"])])["r"].token_ids
    at = next(i for i in range(1, 8) if whole[i] not in whole[:i])
    num_steps = engine.counters.num_steps
    stopping = create_request(adapter=digests["small"], stop_token_ids=(whole[at],))
    done = run_requests(built, [stopping])["r"]
    assert (done.token_ids, done.finish_reason) == (whole[: at + 1], "stop")
    assert done.usage.num_completion_tokens == at + 1
    assert engine.counters.num_steps - num_steps == at + 2
    assert engine.counters.num_generation_tokens == 8 + at + 1


def test_an_adapter_is_held_until_the_step_that_reads_it_is_collected(build: Build) -> None:
    built, digests = build()
    engine, digest = built.engine, digests["small"]
    load_adapters(built, [digest])
    engine.add(create_request(adapter=digest))
    engine.step()
    engine.step()
    [last] = engine.abort("r")
    assert last.is_last
    assert last.usage.num_completion_tokens == 1
    assert list(engine.adapters.held) == [digest]
    assert built.tiers.num_references() == {digest: 1}
    assert engine.has_work
    assert engine.step() == []
    assert built.tiers.num_references() == {}


def test_an_id_is_free_again_though_a_row_of_it_is_in_flight(build: Build) -> None:
    built, _ = build()
    want = run_requests(built, [create_request()])["r"].token_ids
    built.engine.add(create_request())
    built.engine.step()
    built.engine.abort("r")
    assert run_requests(built, [create_request()])["r"].token_ids == want


def spoil(
    built: BuiltEngine, monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[int, int], bool]
) -> None:
    """Of the steps from now on, the rows of choices for which `is_bad(step, choice)` turn
    non-finite, and so do their blocks."""
    engine, steps = built.engine, iter(range(1000))
    launch = engine._runner.launch

    def launch_badly(plan: StepPlan, adapters: Mapping[str, PooledAdapter]) -> PendingStep:
        pending, step = launch(plan, adapters), next(steps)
        bad = {item.req for item in plan.scheduled if is_bad(step, item.req.index)}
        blocks = [b for req in bad for b in engine.scheduler.blocks.private(req.blocks)]
        for cache in engine._runner._kv.tensors():
            cache[blocks] = torch.nan

        def wait() -> list[Sampled]:
            pairs = zip(pending.items, pending.wait(), strict=True)
            return [Sampled(None, NON_FINITE) if i.req in bad else row for i, row in pairs]

        return PendingStep(pending.items, wait)

    monkeypatch.setattr(engine._runner, "launch", launch_badly)


def assert_cache_is_finite(built: BuiltEngine) -> None:
    assert all(bool(t.isfinite().all()) for t in built.engine._runner._kv.tensors())


def test_a_row_too_many_that_fails_fails_nobody_and_leaves_clean_blocks(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, _ = build(prefix_cache=False)
    engine = built.engine
    request = create_request(n=2, max_tokens=30, seed=4, **SAMPLED)
    whole = run_requests(built, [request])["r"].choices
    at, stop = next(
        (i, t)
        for i, t in enumerate(whole[0].token_ids)
        if 2 < i < 15 and t not in [*whole[0].token_ids[:i], *whole[1].token_ids[: i + 4]]
    )
    spoiled: list[int] = []

    def is_bad(step: int, choice: int) -> bool:
        """The row behind the one that stops."""
        if choice == 0 and engine.scheduler.running[0].num_output_tokens == at:
            spoiled.append(step)
        return choice == 0 and step in spoiled

    spoil(built, monkeypatch, is_bad)
    stopping = create_request(n=2, max_tokens=30, seed=4, stop_token_ids=(stop,), **SAMPLED)
    first, second = run_requests(built, [stopping])["r"].choices
    assert spoiled
    assert (first.finish_reason, first.error) == ("stop", None)
    assert first.token_ids == whole[0].token_ids[: at + 1]
    assert second.error is None
    assert second.token_ids == whole[1].token_ids[: len(second.token_ids)]
    assert len(second.token_ids) > at + 2
    assert_cache_is_finite(built)


def test_a_request_that_fails_in_flight_leaves_clean_blocks(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, _ = build(prefix_cache=False)
    spoil(built, monkeypatch, lambda step, choice: step == 2)
    done = run_requests(built, [create_request(max_tokens=20)])["r"]
    assert done.finish_reason == "error"
    assert len(done.token_ids) == done.usage.num_completion_tokens == 2
    assert_cache_is_finite(built)


def test_a_request_aborted_in_flight_leaves_clean_blocks_if_its_row_fails(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, _ = build(prefix_cache=False)
    spoil(built, monkeypatch, lambda step, choice: step == 1)
    built.engine.add(create_request())
    built.engine.step()
    built.engine.step()
    built.engine.abort("r")
    assert built.engine.scheduler.blocks.num_free < built.engine.scheduler.blocks.num_usable
    run_out(built)
    assert_cache_is_finite(built)
