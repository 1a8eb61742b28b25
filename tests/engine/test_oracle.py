"""The engine against transformers + PEFT, token by token, on mixed batches."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from weft.engine.build import BuiltEngine
from weft.engine.offline import load_adapters, run_requests
from weft.messages import EngineRequest, SamplingParams

if TYPE_CHECKING:
    from tests.bench import Bench
    from tests.oracle import NearTies

NUM_TOKENS = 64  # test_family_tokens.py has 128 of each family


def create_prompts(num: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Of ugly lengths; every other one begins as all of those do."""
    rng = random.Random(seed)
    beginning = tuple(rng.randrange(256) for _ in range(37))
    prompts = []
    for i in range(num):
        own = tuple(rng.randrange(256) for _ in range(rng.choice([1, 3, 17, 40])))
        prompts.append(beginning + own if i % 2 else own)
    return prompts


def create_requests(bench: Bench, digests: dict[str, str], num: int) -> list[EngineRequest]:
    """`num` greedy requests that go round the base and all adapters."""
    names = [None, *bench.oracle.adapter_dirs]
    sampling = SamplingParams(NUM_TOKENS, temperature=0, ignore_eos=True)
    return [
        EngineRequest(
            f"{i}:{names[i % len(names)]}",
            "tenant",
            prompt,
            sampling,
            digests.get(names[i % len(names)] or ""),
        )
        for i, prompt in enumerate(create_prompts(num))
    ]


def adapter_of(request: EngineRequest) -> str | None:
    name = request.request_id.partition(":")[2]
    return None if name == "None" else name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "moe", "demo"])
def test_first_step_logits_are_the_oracles(name: str, request: pytest.FixtureRequest) -> None:
    bench: Bench = request.getfixturevalue(name)
    built, digests = bench.build()
    load_adapters(built, digests.values())
    requests = create_requests(bench, digests, 12)
    got = bench.first_step_logits(built, requests)
    for item in requests:
        logits = got[item.request_id]
        want = bench.oracle.logits(adapter_of(item), item.prompt_token_ids)[-1]
        error = (logits - want).abs().max() / max(1.0, float(want.abs().max()))
        assert error < 1e-4, f"{item.request_id}: {error:.2e}"
    built.tiers.close()


WAYS: dict[str, dict[str, Any]] = {
    "prompts whole": {},
    "no prefix cache": {"prefix_cache": False},
    "chunks of 64": {"max_running": 14, "max_step_tokens": 64},
    "chunks of 7": {"max_running": 7, "max_step_tokens": 7},
    "chunks of 1": {"max_running": 1, "max_step_tokens": 1, "num_requests": 6},
    "two adapters at a time": {"max_adapters_in_batch": 2},
    "preempted and matched again": {"num_blocks": 28},
    "preempted and computed again": {"num_blocks": 28, "prefix_cache": False},
    "preempted and swapped": {"num_blocks": 28, "num_host_blocks": 200, "prefix_cache": False},
    "arriving at random steps": {"random_arrival": True},
    "asynchronous, in chunks": {"async_scheduling": True, "max_step_tokens": 30, "max_running": 7},
    "asynchronous, arriving at random": {"async_scheduling": True, "random_arrival": True},
    "asynchronous, swapped": {"async_scheduling": True, "num_blocks": 28, "num_host_blocks": 200},
    "by torch's operators": {"kernels": "torch"},
    "by torch's operators, 2 adapters at a time": {"kernels": "torch", "max_adapters_in_batch": 2},
}


# test_family_tokens.py runs chunks of these sizes on every family; here they are of a long series
LONG = {"chunks of 64", "chunks of 7", "chunks of 1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.verify] * (way in LONG)) for way in WAYS]
)
def test_however_a_mixed_batch_is_run_it_gives_the_oracles_tokens(
    bench: Bench, near_ties: NearTies, way: str
) -> None:
    options = dict(WAYS[way])
    num_requests = options.pop("num_requests", 14)
    random_arrival = options.pop("random_arrival", False)
    is_tight = "num_blocks" in options
    if is_tight:
        block_bytes = bench.block_bytes()
        options["kv_bytes"] = options.pop("num_blocks") * block_bytes
        options["swap_bytes"] = options.pop("num_host_blocks", 0) * block_bytes
        options["max_model_len"] = 256
    built, digests = bench.build(**options)
    requests = create_requests(bench, digests, num_requests)
    if random_arrival:
        got = run_arriving_at_random(built, requests)
    else:
        got = {key: c.token_ids for key, c in run_requests(built, requests).items()}
    assert (built.engine.scheduler.num_preemptions > 0) == is_tight
    built.tiers.close()
    for request in requests:
        adapter, prompt = adapter_of(request), request.prompt_token_ids
        assert len(got[request.request_id]) == NUM_TOKENS
        near_ties.assert_greedy(bench.oracle, adapter, prompt, got[request.request_id])
    near_ties.assert_rare()


def run_arriving_at_random(
    built: BuiltEngine, requests: list[EngineRequest]
) -> dict[str, list[int]]:
    rng, left = random.Random(3), list(requests)
    rng.shuffle(left)
    got: dict[str, list[int]] = {request.request_id: [] for request in requests}
    while left or built.engine.has_work:
        if left and rng.random() < 0.3:
            built.engine.add(left.pop())
        for output in built.engine.step():
            got[output.request_id] += output.token_ids
    return got


@pytest.mark.slow
def test_a_seeded_request_gives_the_same_tokens_alone_and_in_a_batch(dense: Bench) -> None:
    sampling = SamplingParams(24, temperature=0.9, top_p=0.9, top_k=40, seed=11, ignore_eos=True)
    built, digests = dense.build()
    requests = [
        EngineRequest(str(i), "t", prompt, sampling, digests["all-linear"])
        for i, prompt in enumerate(create_prompts(6))
    ]
    together = run_requests(built, requests)
    for request in requests:
        alone = run_requests(built, [request])
        assert alone[request.request_id].token_ids == together[request.request_id].token_ids
    built.tiers.close()


@pytest.mark.slow
def test_a_prompt_seen_before_is_cached_for_its_own_tenant_and_adapter_only(bench: Bench) -> None:
    built, digests = bench.build()
    prompt = create_prompts(2)[1]
    digest = next(iter(digests.values()))
    sampling = SamplingParams(8, temperature=0, ignore_eos=True)
    cached = {}
    for name, tenant, adapter in (
        ("first", "t", digest),
        ("again", "t", digest),
        ("other tenant", "u", digest),
        ("base", "t", None),
    ):
        request = EngineRequest(name, tenant, prompt, sampling, adapter)
        cached[name] = run_requests(built, [request])[name].usage.num_cached_tokens
    built.tiers.close()
    whole_blocks = (len(prompt) - 1) // 16 * 16
    assert cached == {"first": 0, "again": whole_blocks, "other tenant": 0, "base": 0}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"prefix_cache": False}, {"max_running": 2}])
def test_several_choices_are_what_as_many_requests_would_get(
    bench: Bench, options: dict[str, Any]
) -> None:
    built, digests = bench.build(**options)
    digest = next(iter(digests.values()))
    for prompt in create_prompts(4):
        many = SamplingParams(20, temperature=1.0, seed=5, n=3, ignore_eos=True)
        got = run_choices(built, EngineRequest("n", "t", prompt, many, digest))
        for index in range(3):
            one = SamplingParams(20, temperature=1.0, seed=5 + index, ignore_eos=True)
            request = EngineRequest(f"{index}", "t", prompt, one, digest)
            assert run_requests(built, [request])[f"{index}"].token_ids == got[index]
    built.tiers.close()


def run_choices(built: BuiltEngine, request: EngineRequest) -> list[list[int]]:
    got: list[list[int]] = [[] for _ in range(request.sampling.n)]
    built.engine.add(request)
    while built.engine.has_work:
        for output in built.engine.step():
            got[output.index] += output.token_ids
            last = output
    assert last.is_last
    assert last.usage.num_prompt_tokens == len(request.prompt_token_ids)
    assert last.usage.num_completion_tokens == sum(map(len, got))
    return got
