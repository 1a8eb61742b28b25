"""An engine whose KV blocks and adapter pages lend each other room answers as any other does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest
import torch

from weft.engine.build import BuiltEngine
from weft.engine.config import EngineConfig
from weft.engine.memory_plan import resolve_memory
from weft.engine.model.config import create_model_config, read_hf_config
from weft.engine.offline import run_requests
from weft.messages import EngineRequest, SamplingParams

if TYPE_CHECKING:
    from tests.bench import Bench

NAMES = ("small", "all-linear", "mlp", "wide")


def ask(built: BuiltEngine, num_tokens: int, digests: Sequence[str | None]) -> list[Any]:
    """The tokens of requests for each of the adapters, all at once."""
    sampling = SamplingParams(num_tokens, temperature=0, ignore_eos=True)
    requests = [
        EngineRequest(f"{number}", "tenant", (5 + number, 6, 7), sampling, digest)
        for number, digest in enumerate(digests)
    ]
    completions = run_requests(built, requests)
    assert all(c.choices[0].error is None for c in completions.values())
    return [completions[req.request_id].choices[0].token_ids for req in requests]


def test_adapters_grow_into_an_idle_kv_cache_and_blocks_come_back(
    dense: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft_adapters.exchange._HOLD_S", 0.05)
    monkeypatch.setattr("weft_adapters.loader._GRACE_S", 0.05)
    fixed, digests = dense.build()
    adapters, base = [digests[name] for name in NAMES], [None] * 32
    with_adapters, without = ask(fixed, 24, adapters), ask(fixed, 40, base)
    largest = max(fixed.tiers.placement(digest).num_bytes for digest in adapters)
    fixed.tiers.close()
    block_bytes = dense.block_bytes()
    built, _ = dense.build(
        max_model_len=64,
        kv_bytes=60 * block_bytes,
        min_kv_bytes=8 * block_bytes,
        adapter_bytes=largest + 1,
        min_adapter_bytes=largest // 2,
        prefix_cache=False,
    )
    blocks, pool = built.engine.scheduler.blocks, built.pool
    assert ask(built, 24, adapters) == with_adapters
    num_left = blocks.num_usable
    assert num_left < 59, "the KV cache had room to spare"
    assert pool.num_bytes > largest
    deadline_s = time.monotonic() + 30
    while blocks.num_usable <= 59:  # it began with so many; the requests could use 96
        assert ask(built, 40, base) == without
        assert time.monotonic() < deadline_s
    assert pool.num_bytes < largest
    assert ask(built, 24, adapters) == with_adapters
    built.tiers.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_kv_bytes": 1 << 30}, "min_kv_bytes=1073741824 is more than kv_bytes="),
        ({"min_adapter_bytes": 1 << 40}, "is more than adapter_bytes="),
        ({"min_adapter_bytes": 0}, "min_adapter_bytes must be at least 1, not 0"),
    ],
)
def test_floors_that_cannot_be_are_refused(
    dense: Bench, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dense.build(**options)


def test_the_least_kv_cache_holds_a_request_of_full_length(dense: Bench) -> None:
    model = create_model_config(read_hf_config(dense.base_dir))
    config = EngineConfig(
        dense.base_dir, dense.root, dtype="float32", max_model_len=64, min_kv_bytes=1
    )
    plan = resolve_memory(config, model, torch.float32, torch.device("cpu"), copies_adapters=False)
    assert plan.min_blocks == 4
