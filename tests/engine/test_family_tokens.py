"""Greedy tokens of every family, adapters on, however they are run: those of transformers + PEFT,
one request at a time.

Every case in every way of running it takes minutes and is `-m verify`; what runs always has each
family with each chunk size, and with and without prefix cache in a roomy pool and in a tiny one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from tests.engine.families import CASES, NUM_TOKENS, PROMPT_LENGTHS, adapter_of, create_requests

from weft.engine.build import BuiltEngine
from weft.messages import EngineRequest
from weft_adapters.families import FAMILIES

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet
    from tests.bench import Bench
    from tests.oracle import NearTies


@dataclass(frozen=True)
class Way:
    """How requests are run. `chunk`: prompt tokens in a step at most, None = prompts whole."""

    chunk: int | None
    has_prefix_cache: bool
    is_tight: bool

    def __str__(self) -> str:
        chunk = f"chunks of {self.chunk}" if self.chunk else "whole"
        cache = "cached" if self.has_prefix_cache else "uncached"
        return f"{chunk}, {cache}, {'preempted' if self.is_tight else 'roomy'}"

    def options(self, block_bytes: int) -> dict[str, Any]:
        """A tight pool holds one request of full length and little more; host memory has room for
        one that is preempted early, others are computed again."""
        num_blocks, num_host_blocks = (17, 6) if self.is_tight else (128, 0)
        options: dict[str, Any] = {
            "prefix_cache": self.has_prefix_cache,
            "max_model_len": max(PROMPT_LENGTHS) + NUM_TOKENS,
            "kv_bytes": num_blocks * block_bytes,
            "swap_bytes": num_host_blocks * block_bytes,
        }
        if self.chunk is not None:
            # to be preempted takes two: one has chunks of 1 beside the tokens of the other's answer
            running = max(2 if self.is_tight else 1, min(self.chunk, 8))
            options |= {"max_running": running, "max_step_tokens": max(running, self.chunk)}
        return options


CHUNKS = (1, 7, 64, None)
CACHE_AND_POOL = tuple(itertools.product((True, False), repeat=2))


def always_run() -> set[tuple[str, Way]]:
    """Of each family every chunk size once, each with another of `CACHE_AND_POOL`; its cases take
    turns."""
    rng = random.Random(0)
    names: dict[str, list[str]] = {}
    for name, case in CASES.items():
        names.setdefault(case.model_type, []).append(name)
    chosen = set()
    for sizes in names.values():
        order = rng.sample(CACHE_AND_POOL, len(CACHE_AND_POOL))
        for name, chunk, both in zip(itertools.cycle(sizes), CHUNKS, order):
            chosen.add((name, Way(chunk, *both)))
    return chosen


def each_way_of_each_case() -> list[ParameterSet]:
    always, params = always_run(), []
    for name, chunk, both in itertools.product(CASES, CHUNKS, CACHE_AND_POOL):
        way = Way(chunk, *both)
        marks = () if (name, way) in always else (pytest.mark.verify,)
        params.append(pytest.param(name, way, id=f"{name}: {way}", marks=marks))
    return params


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way"), each_way_of_each_case())
def test_tokens_are_the_oracles(
    name: str, way: Way, get_family_bench: Callable[[str], Bench], near_ties: NearTies
) -> None:
    bench = get_family_bench(name)
    built, digests = bench.build(**way.options(bench.block_bytes()))
    requests = list(create_requests(digests))
    tokens, num_cached = run_shorter_after_longer(built, requests)
    assert (built.engine.scheduler.num_preemptions > 0) == way.is_tight
    built.tiers.close()
    if not way.is_tight:
        assert num_cached == len(bench.oracle.adapter_dirs) * 32 * way.has_prefix_cache
    for request in requests:
        adapter, prompt = adapter_of(request), request.prompt_token_ids
        assert len(tokens[request.request_id]) == NUM_TOKENS
        near_ties.assert_greedy(bench.oracle, adapter, prompt, tokens[request.request_id])
    near_ties.assert_rare()


def run_shorter_after_longer(
    built: BuiltEngine, requests: list[EngineRequest]
) -> tuple[dict[str, list[int]], int]:
    """Tokens by request, and how many of their prompts' came from the prefix cache. An adapter's
    longer prompt is there from the start, its shorter one comes when that has its first token."""
    engine = built.engine
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    shorter, longer = f":{PROMPT_LENGTHS[1]}", f":{PROMPT_LENGTHS[2]}"
    later = {r.request_id: r for r in requests if r.request_id.endswith(shorter)}
    for request in requests:
        if request.request_id not in later:
            engine.add(request)
    num_cached = 0
    while engine.has_work:
        for output in engine.step():
            request_id = output.request_id
            tokens[request_id] += output.token_ids
            if output.is_last:
                num_cached += output.usage.num_cached_tokens
            if request_id.endswith(longer):
                follower = later.pop(request_id.removesuffix(longer) + shorter, None)
                if follower is not None:
                    engine.add(follower)
    assert not later
    return tokens, num_cached


def test_what_always_runs_has_each_family_in_each_way() -> None:
    ways = [(CASES[name].model_type, way) for name, way in always_run()]
    chunks = {(family, way.chunk) for family, way in ways}
    others = {(family, way.has_prefix_cache, way.is_tight) for family, way in ways}
    assert len(ways) == len(chunks) == len(others) == len(FAMILIES) * len(CHUNKS)
    assert len({name for name, _ in always_run()}) == len(CASES)
