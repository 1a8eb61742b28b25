"""The engine against transformers + PEFT, token by token, on mixed batches."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from weft.engine.build import BuiltEngine
from weft.engine.offline import load_adapters, run_requests
from weft.messages import EngineRequest, SamplingParams

if TYPE_CHECKING:
    from tests.conftest import Bench, NearTies

NUM_TOKENS = 64


def create_prompts(num: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [
        tuple(rng.randrange(256) for _ in range(rng.choice([1, 3, 17, 40]))) for _ in range(num)
    ]


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
def test_a_mixed_batch_gives_the_oracles_tokens(bench: Bench, near_ties: NearTies) -> None:
    built, digests = bench.build()
    requests = create_requests(bench, digests, 12)
    completions = run_requests(built, requests)
    for request in requests:
        adapter, prompt = adapter_of(request), request.prompt_token_ids
        want = bench.oracle.greedy(adapter, prompt, NUM_TOKENS)
        got = completions[request.request_id].token_ids
        near_ties.assert_equal_tokens(bench.oracle, adapter, prompt, got, want)
    near_ties.assert_rare()
    built.tiers.close()


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"max_running": 1}, id="one at a time"),
        pytest.param({"max_running": 7, "max_step_tokens": 7}, id="chunks of at most 7 tokens"),
        pytest.param({"max_adapters_in_batch": 2}, id="two adapters at a time"),
        pytest.param({"kv_blocks": 30}, id="preempted for lack of blocks"),
        pytest.param({"random_arrival": True}, id="arriving at random steps"),
    ],
)
def test_how_requests_are_batched_changes_no_token(
    bench: Bench, near_ties: NearTies, options: dict[str, int]
) -> None:
    options = dict(options)
    random_arrival = bool(options.pop("random_arrival", False))
    kv_blocks = options.pop("kv_blocks", None)
    built, digests = bench.build()
    requests = create_requests(bench, digests, 12)
    want = run_requests(built, requests)
    built.tiers.close()
    if kv_blocks is not None:
        options["kv_bytes"] = kv_blocks * built.memory.kv_bytes // built.memory.num_blocks
        options["max_model_len"] = 256
    other, _ = bench.build(**options)
    if random_arrival:
        got = run_arriving_at_random(other, requests)
    else:
        got = {key: c.token_ids for key, c in run_requests(other, requests).items()}
    if kv_blocks is not None:
        assert other.engine.scheduler.num_preemptions > 0
    other.tiers.close()
    for request in requests:
        near_ties.assert_equal_tokens(
            bench.oracle, adapter_of(request), request.prompt_token_ids,
            got[request.request_id], want[request.request_id].token_ids,
        )  # fmt: skip
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
